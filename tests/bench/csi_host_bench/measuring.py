"""One RPC and its floor, measured after each other in turns, so that what else the machine does hits both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from .callers import Called
from .place import CallsFailedError, Place
from .processes import cpu_seconds

_REFUSED = "UNIMPLEMENTED"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One batch of calls of one side. Times are in seconds; those of processors are for the whole batch.

    ``cpu_seconds`` is the processor time of the driver, or of the process that calls librbd; ``osd_cpu_seconds`` that
    of the OSD meanwhile.
    """

    calls: int
    wall_seconds: float
    median_seconds: float
    cpu_seconds: float
    osd_cpu_seconds: float

    @property
    def rate(self) -> float:
        """Calls a second, of all callers together."""
        return self.calls / self.wall_seconds


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The two sides of one turn."""

    rpc: Sample
    bare: Sample

    @property
    def share(self) -> float:
        """How much of librbd's own throughput the driver has: 1 is all of it."""
        return self.rpc.rate / self.bare.rate


@dataclass(frozen=True, kw_only=True)
class Result:
    """All turns of one RPC with one number of callers; no turns where the driver does not serve it."""

    rpc: str
    floor: str
    callers: int
    pairs: Sequence[Pair]

    @property
    def is_served(self) -> bool:
        """Whether there is anything to say of it."""
        return bool(self.pairs)

    @property
    def share(self) -> float:
        """The median share of the turns."""
        return median(pair.share for pair in self.pairs)

    @property
    def shares(self) -> tuple[float, float]:
        """The smallest and the biggest share of the turns."""
        found = [pair.share for pair in self.pairs]
        return min(found), max(found)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one side is to do in one turn."""

    action: str
    items: Sequence[Any]


class NotServedError(Exception):
    """The driver does not have this RPC."""


def measure_rpc(place: Place, batch: Batch, callers: int) -> tuple[Sample, list[Any]]:
    """Have the driver called; raises NotServedError, CallsFailedError."""
    processes = {"own": place.host.process.pid, "osd": place.daemon("ceph-osd")}
    before = _cpu(processes)
    called = place.driver.call_all(batch.action, batch.items, callers=callers)
    used = _used(before, _cpu(processes))
    if called.codes and set(called.codes) == {_REFUSED}:
        raise NotServedError(batch.action)
    return _sample(f"RPC {batch.action}", called, used), called.answers


def measure_bare(place: Place, batch: Batch, callers: int) -> Sample:
    """Have librbd called; raises CallsFailedError."""
    processes = {"own": place.bare.process_id, "osd": place.daemon("ceph-osd")}
    before = _cpu(processes)
    called = place.bare.call_all(batch.action, batch.items, callers=callers)
    return _sample(f"librbd {batch.action}", called, _used(before, _cpu(processes)))


def _sample(what: str, called: Called, used: Mapping[str, float]) -> Sample:
    if called.errors:
        raise CallsFailedError(f"{what}: {len(called.errors)} calls failed, the first with {called.errors[0]}")
    return Sample(
        calls=len(called.answers),
        wall_seconds=called.wall_seconds,
        median_seconds=median(called.seconds),
        cpu_seconds=used["own"],
        osd_cpu_seconds=used["osd"],
    )


def _cpu(processes: Mapping[str, int]) -> dict[str, float]:
    return {name: cpu_seconds(process_id) for name, process_id in processes.items()}


def _used(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    return {name: after[name] - before[name] for name in before}
