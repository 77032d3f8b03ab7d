"""csi-host killed at every durable step of every RPC that writes: the retry completes it, the delete leaves nothing.

The steps are not listed here: the first call of each RPC is made undisturbed and tells them. Every kill has a volume
and a source of its own, and all kills of an RPC happen side by side: what a dead process had open is busy for seconds.
"""

import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from csi_host.proto import csi_pb2_grpc
from csi_host_rbd.testing import victims
from csi_host_rbd.testing.calls import ASK_AGAIN, IN_USE, Call, Calls
from csi_host_rbd.testing.patterns import Patterns
from csi_host_rbd.testing.pools import PoolView
from csi_host_rbd.testing.remains import remains_of, wait_until_clean
from csi_host_rbd.testing.rig import GIB, write_clusters_file
from csi_host_rbd.testing.victims import Kill, Moment, Orders, Victim

Report = Callable[[str, Sequence[str]], None]

pytestmark = [pytest.mark.ceph, pytest.mark.timeout(600)]

_KNOWN_SECONDS = 120.0
_CASES_AT_ONCE = 8
_VARYING = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|crash-[0-9a-f]{8}|(?<=/)(?<=id )?[0-9a-f]{12,}")


class Ground:
    """A RADOS namespace, and what is started to serve it; ``controller`` is a process that is not killed."""

    def __init__(self, pool: PoolView, directory: Path, patterns: Patterns) -> None:
        self.pool = pool
        self.calls = Calls(pool=pool)
        self.patterns = patterns
        self._sockets = directory
        self._clusters_file = write_clusters_file(pool, directory)

    def orders(self, name: str, *, kill: Kill | None = None, tells_steps: bool = False) -> Orders:
        """Return the orders of a process."""
        return Orders(
            socket=self._sockets / f"{name}.sock",
            clusters_file=self._clusters_file,
            kill=kill,
            tells_steps=tells_steps,
            set_metadata=True,
        )


@dataclass
class Case:
    """One call, and all that is made for it; ``possible`` are the texts that a copy of the source may hold."""

    ground: Ground
    controller: csi_pb2_grpc.ControllerStub
    name: str
    text: str = "first"
    possible: set[str] = field(default_factory=lambda: {"first"})
    source_id: str = ""
    deletes: list[Call] = field(default_factory=list)

    def make_source(self) -> str:
        """Make a volume that holds the text."""
        self.source_id = self.make_volume(f"source-{self.name}")
        return self.source_id

    def make_volume(self, name: str) -> str:
        """Make a volume that holds the text, and is deleted in the end."""
        volume_id: str = self.ground.calls.create(name).on(self.controller).volume.volume_id
        self.ground.patterns.write(image_of(volume_id), self.text)
        self.deletes.append(self.ground.calls.delete(volume_id))
        return volume_id

    def make_snapshot(self) -> str:
        """Make a snapshot of the source, that is deleted in the end."""
        call = self.ground.calls.snapshot(self.make_source(), f"source-{self.name}")
        snapshot_id: str = call.on(self.controller).snapshot.snapshot_id
        self.deletes.append(self.ground.calls.delete_snapshot(snapshot_id))
        return snapshot_id

    def rewrite_source(self, *, is_in_copy: bool) -> None:
        """Give the source another content, which a copy may hold, or may not as it is complete."""
        if self.source_id:
            self.text += "+"
            self.ground.patterns.write(image_of(self.source_id), self.text)
            self.possible |= {self.text} if is_in_copy else set()

    def check_copy(self, volume_id: str) -> None:
        """Raise AssertionError unless a copy holds all that the source held at one time while it was made."""
        found = [self.ground.patterns.differs(image_of(volume_id), text) for text in self.possible]
        assert "" in found, found

    def check(self, volume_id: str, text: str) -> None:
        """Raise AssertionError unless the volume holds what a text stands for."""
        difference = self.ground.patterns.differs(image_of(volume_id), text)
        assert not difference, difference

    def check_source(self) -> None:
        """Raise AssertionError when something of the making is left on the source, or its content is not its own."""
        assert "user" not in self.ground.pool.snapshots(image_of(self.source_id)).values()
        self.check(self.source_id, self.text)


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """An RPC: ``prepare`` makes what it needs and returns the call; ``check`` judges the state after its answer."""

    name: str
    prepare: Callable[[Case], Call]
    check: Callable[[Case, Call, Any], None]


def image_of(handle: str, prefix: str = "csi-vol-") -> str:
    return prefix + handle[-36:]


def _create(case: Case) -> Call:
    return case.ground.calls.create(case.name, parameters={"csi.storage.k8s.io/pv/name": case.name})


def _is_blank(case: Case, _: Call, made: Any) -> None:
    case.deletes.append(case.ground.calls.delete(made.volume.volume_id))
    case.check(made.volume.volume_id, "")


def _restore(case: Case) -> Call:
    return case.ground.calls.create(
        case.name,
        snapshot_id=case.make_snapshot(),
        size_bytes=2 * GIB,
        parameters={"csi.storage.k8s.io/pv/name": case.name},
    )


def _is_as_snapshot(case: Case, _: Call, made: Any) -> None:
    case.deletes.append(case.ground.calls.delete(made.volume.volume_id))
    case.check(made.volume.volume_id, "first")
    case.check_source()
    assert case.ground.pool.image(image_of(made.volume.volume_id))["size"] == 2 * GIB


def _clone(case: Case) -> Call:
    return case.ground.calls.create(
        case.name,
        volume_id=case.make_source(),
        size_bytes=2 * GIB,
        parameters={"csi.storage.k8s.io/pv/name": case.name},
    )


def _is_as_source(case: Case, _: Call, made: Any) -> None:
    case.deletes.append(case.ground.calls.delete(made.volume.volume_id))
    case.check_copy(made.volume.volume_id)
    case.check_source()
    assert case.ground.pool.image(image_of(made.volume.volume_id))["size"] == 2 * GIB


def _delete(case: Case) -> Call:
    return case.ground.calls.delete(case.make_source())


def _is_gone(case: Case, _: Call, __: Any) -> None:
    assert image_of(case.source_id) not in case.ground.pool.images()


def _delete_before_another_is_made(case: Case) -> Call:
    """The delete is not repeated before a volume of the same name is asked for."""
    return case.ground.calls.delete(case.make_volume(case.name))


def _another_can_be_made(case: Case, call: Call, _: Any) -> None:
    made = case.ground.calls.create(case.name).on(case.controller)
    case.deletes.append(case.ground.calls.delete(made.volume.volume_id))
    assert made.volume.volume_id != call.request.volume_id  # type: ignore[attr-defined]
    case.check(made.volume.volume_id, "")


def _expand(case: Case) -> Call:
    return case.ground.calls.expand(case.make_source(), 3 * GIB)


def _is_bigger(case: Case, _: Call, answer: Any) -> None:
    assert answer.capacity_bytes == case.ground.pool.image(image_of(case.source_id))["size"] == 3 * GIB
    case.check(case.source_id, case.text)


def _snapshot(case: Case) -> Call:
    parameters = {"csi.storage.k8s.io/volumesnapshot/name": case.name}
    return case.ground.calls.snapshot(case.make_source(), case.name, parameters=parameters)


def _restores_to_source(case: Case, _: Call, made: Any) -> None:
    snapshot_id = made.snapshot.snapshot_id
    case.deletes.append(case.ground.calls.delete_snapshot(snapshot_id))
    image = image_of(snapshot_id, "csi-snap-")
    assert made.snapshot.ready_to_use
    assert case.ground.pool.snapshots(image) == {image: "user"}
    case.check_source()
    restored = case.ground.calls.create(f"from-{case.name}", snapshot_id=snapshot_id).on(case.controller)
    case.deletes.append(case.ground.calls.delete(restored.volume.volume_id))
    case.check_copy(restored.volume.volume_id)


def _delete_snapshot(case: Case) -> Call:
    return case.ground.calls.delete_snapshot(case.make_snapshot())


def _snapshot_is_gone(case: Case, call: Call, _: Any) -> None:
    gone: str = call.request.snapshot_id  # type: ignore[attr-defined]
    assert image_of(gone, "csi-snap-") not in case.ground.pool.images()
    case.check_source()


SCENARIOS = [
    Scenario(name="create", prepare=_create, check=_is_blank),
    Scenario(name="create-from-snapshot", prepare=_restore, check=_is_as_snapshot),
    Scenario(name="create-from-volume", prepare=_clone, check=_is_as_source),
    Scenario(name="delete", prepare=_delete, check=_is_gone),
    Scenario(name="delete-and-create", prepare=_delete_before_another_is_made, check=_another_can_be_made),
    Scenario(name="expand", prepare=_expand, check=_is_bigger),
    Scenario(name="create-snapshot", prepare=_snapshot, check=_restores_to_source),
    Scenario(name="delete-snapshot", prepare=_delete_snapshot, check=_snapshot_is_gone),
]


@pytest.fixture
def ground(pool: PoolView) -> Iterator[Ground]:
    # Not pytest's own directory: its paths are longer than a socket's may be.
    with tempfile.TemporaryDirectory(prefix="crash-") as directory, pool.connected() as connection_pool:
        yield Ground(pool, Path(directory), Patterns(ioctx=connection_pool.ioctx))


@pytest.fixture
def survivor(ground: Ground) -> Iterator[csi_pb2_grpc.ControllerStub]:
    """The Controller service of a process that is not killed."""
    with victims.victim(ground.orders("survivor")) as process, process.controller() as controller:
        yield controller


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_killed_before_and_after_every_step_it_is_completed_and_leaves_nothing(
    scenario: Scenario, ground: Ground, survivor: csi_pb2_grpc.ControllerStub, report: Report
) -> None:
    before = remains_of(ground.pool)
    recorded = Case(ground=ground, controller=survivor, name=f"{scenario.name}-0")
    steps = _record(scenario, recorded)
    table = [f"{number:3d}  {step}" for number, step in enumerate(steps, start=1)]
    report(f"steps-{scenario.name}.txt", table)
    cases = {
        kill: Case(ground=ground, controller=survivor, name=f"{scenario.name}-{kill.step}-{kill.moment}")
        for kill in _kills(steps)
    }
    with ThreadPoolExecutor(_CASES_AT_ONCE) as threads:
        failures = list(threads.map(lambda kill: _killed(scenario, cases[kill], kill, steps[kill.step - 1]), cases))
    _assert_none(failures)
    _delete_all([recorded, *cases.values()])
    _assert_none(wait_until_clean(ground.pool, before))
    report("summary", [f"{scenario.name}: {len(steps)} durable steps, killed {len(cases)} times, nothing left"])


def _record(scenario: Scenario, case: Case) -> list[str]:
    """Make the call once, undisturbed, and return its steps."""
    call = scenario.prepare(case)
    orders = case.ground.orders(case.name, tells_steps=True)
    with victims.victim(orders) as process, process.controller() as controller:
        answer = call.on(controller)
        steps = [_VARYING.sub("*", step) for step in process.steps()]
    # Fewer, and the hook has not worked.
    assert steps
    scenario.check(case, call, answer)
    return steps


def _kills(steps: Sequence[str]) -> Iterator[Kill]:
    for step in range(1, len(steps) + 1):
        yield Kill(step=step, moment=Moment.BEFORE)
        yield Kill(step=step, moment=Moment.AFTER)


def _killed(scenario: Scenario, case: Case, kill: Kill, step: str) -> str:
    """Have a process killed in the call, make the call again on another; return what is wrong, "" when nothing is."""
    try:
        _kill_and_repeat(scenario, case, kill)
    except (AssertionError, grpc.RpcError) as error:
        return f"{scenario.name} killed {kill} ({step}): {error}"
    return ""


def _kill_and_repeat(scenario: Scenario, case: Case, kill: Kill) -> None:
    call = scenario.prepare(case)
    with victims.victim(case.ground.orders(f"{case.name}-dies", kill=kill)) as process:
        _call_and_die(process, call)
    if not call.rpc.startswith("DeleteVolume"):
        case.rewrite_source(is_in_copy=True)
    with victims.victim(case.ground.orders(case.name)) as process, process.controller() as controller:
        again_after = IN_USE if call.rpc.startswith("Delete") else ASK_AGAIN
        answer = call.until_known(lambda: controller, seconds=_KNOWN_SECONDS, again_after=again_after)
    if not call.rpc.startswith("DeleteVolume"):
        case.rewrite_source(is_in_copy=False)
    scenario.check(case, call, answer)


def _call_and_die(process: Victim, call: Call) -> None:
    with process.controller() as controller, suppress(grpc.RpcError):
        call.on(controller)
    process.wait_until_killed()


def _delete_all(cases: Sequence[Case]) -> None:
    """Delete what was made, the copies first; what a dead process had open when the OSD has forgotten it."""
    with ThreadPoolExecutor(_CASES_AT_ONCE) as threads:
        list(threads.map(_delete_case, cases))


def _delete_case(case: Case) -> None:
    for call in reversed(case.deletes):
        call.until_known(lambda: case.controller, seconds=_KNOWN_SECONDS, again_after=IN_USE)


def _assert_none(failures: Sequence[str]) -> None:
    found = [failure for failure in failures if failure]
    assert not found, "\n".join(found)
