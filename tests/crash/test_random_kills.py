"""csi-host killed at random moments with 16 callers at work: no byte of a copy is wrong, and nothing is left.

``KILLS=300 SEED=7`` in the environment say how often and in which order (``make test-kills``).
"""

import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from csi_host.process import run
from csi_host.proto import csi_pb2_grpc
from csi_host_rbd.testing import victims
from csi_host_rbd.testing.calls import ASK_AGAIN, IN_USE, Call, Calls
from csi_host_rbd.testing.patterns import Patterns
from csi_host_rbd.testing.pools import PoolView
from csi_host_rbd.testing.remains import remains_of, wait_until_clean
from csi_host_rbd.testing.rig import GIB, write_clusters_file
from csi_host_rbd.testing.victims import Orders

Report = Callable[[str, Sequence[str]], None]

pytestmark = [pytest.mark.ceph, pytest.mark.timeout(3600)]

_KILLS = int(os.environ.get("KILLS", "30"))
_SEED = int(os.environ.get("SEED", "7"))
_CALLERS = 16
_WATCH_SECONDS = 3
_MOST_SECONDS_ALIVE = 3.0
_KNOWN_SECONDS = 300.0
_CLEAN_SECONDS = 240.0
_MOST_VOLUMES = 4
_MOST_SNAPSHOTS = 2
_FEATURES = ("layering", "layering", "layering,exclusive-lock,object-map,fast-diff")


@dataclass
class _Kept:
    """A volume, or a snapshot, and what it is to hold."""

    handle: str
    text: str
    size_bytes: int


class _Caller:
    """A CO with names of its own: it repeats each call until its outcome is known."""

    def __init__(
        self, number: int, calls: Calls, patterns: Patterns, controller: csi_pb2_grpc.ControllerStub, seed: int
    ) -> None:
        self._number = number
        self._calls = calls
        self._patterns = patterns
        self._controller = controller
        self._chance = random.Random(f"{seed}-{number}")  # noqa: S311 (a test that can be repeated)
        self._features = {"imageFeatures": _FEATURES[number % len(_FEATURES)]}
        self._volumes: list[_Kept] = []
        self._snapshots: list[_Kept] = []
        self._made = 0
        self.done: Counter[str] = Counter()
        self.failure: BaseException | None = None

    def run(self, stop: threading.Event) -> None:
        """Work until told to stop, or until something is wrong."""
        try:
            while not stop.is_set():
                self._chance.choice(self._possible())()
        except BaseException as error:  # noqa: BLE001 (the test raises it)
            self.failure = error

    def check_and_delete_all(self) -> None:
        """See that every volume holds what it should, and delete all, the last one first."""
        for kept in self._volumes:
            self._check(kept)
        for kept in reversed(self._volumes):
            self._make(self._calls.delete(kept.handle), again_after=IN_USE)
        for kept in reversed(self._snapshots):
            self._make(self._calls.delete_snapshot(kept.handle), again_after=IN_USE)

    def _possible(self) -> list[Callable[[], None]]:
        possible: list[Callable[[], None]] = []
        if len(self._volumes) < _MOST_VOLUMES:
            possible += [self._create]
            possible += [self._clone] * 2 if self._volumes else []
            possible += [self._restore] * 2 if self._snapshots else []
        if self._volumes:
            possible += [self._expand, self._delete]
            possible += [self._snapshot] * 2 if len(self._snapshots) < _MOST_SNAPSHOTS else []
        if self._snapshots:
            possible += [self._delete_snapshot]
        return possible

    def _create(self) -> None:
        name = self._name()
        answer = self._make(self._calls.create(name, parameters=self._features))
        kept = _Kept(handle=answer.volume.volume_id, text="", size_bytes=GIB)
        self._check(kept)
        self._patterns.write(_image(kept), name)
        kept.text = name
        self._volumes.append(kept)

    def _clone(self) -> None:
        source = self._chance.choice(self._volumes)
        self._copy(source, volume_id=source.handle)

    def _restore(self) -> None:
        source = self._chance.choice(self._snapshots)
        self._copy(source, snapshot_id=source.handle)

    def _copy(self, source: _Kept, **source_field: str) -> None:
        size_bytes = source.size_bytes + self._chance.choice([0, GIB])
        call = self._calls.create(self._name(), size_bytes=size_bytes, parameters=self._features, **source_field)
        copy = _Kept(handle=self._make(call).volume.volume_id, text=source.text, size_bytes=size_bytes)
        self._check(copy)
        self._volumes.append(copy)

    def _snapshot(self) -> None:
        source = self._chance.choice(self._volumes)
        answer = self._make(self._calls.snapshot(source.handle, self._name()))
        self._snapshots.append(
            _Kept(handle=answer.snapshot.snapshot_id, text=source.text, size_bytes=source.size_bytes)
        )

    def _expand(self) -> None:
        kept = self._chance.choice(self._volumes)
        kept.size_bytes += GIB
        answer = self._make(self._calls.expand(kept.handle, kept.size_bytes))
        assert answer.capacity_bytes == kept.size_bytes

    def _delete(self) -> None:
        kept = self._volumes.pop(self._chance.randrange(len(self._volumes)))
        self._check(kept)
        self._make(self._calls.delete(kept.handle), again_after=IN_USE)

    def _delete_snapshot(self) -> None:
        kept = self._snapshots.pop(self._chance.randrange(len(self._snapshots)))
        self._make(self._calls.delete_snapshot(kept.handle), again_after=IN_USE)

    def _make(self, call: Call, *, again_after: frozenset[grpc.StatusCode] = ASK_AGAIN) -> Any:
        try:
            answer = call.until_known(lambda: self._controller, seconds=_KNOWN_SECONDS, again_after=again_after)
        except grpc.RpcError as error:
            error.add_note(f"in {call}")
            raise
        self.done[call.rpc] += 1
        return answer

    def _check(self, kept: _Kept) -> None:
        difference = self._patterns.differs(_image(kept), kept.text)
        assert not difference, difference

    def _name(self) -> str:
        self._made += 1
        return f"name-{self._number}-{self._made}"


def _image(kept: _Kept) -> str:
    return f"csi-vol-{kept.handle[-36:]}"


def test_killed_at_random_moments_with_16_callers_nothing_is_lost_and_nothing_is_left(
    pool: PoolView, report: Report
) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="crash-") as directory,
        pool.connected() as connection_pool,
    ):
        _run(pool, Path(directory), Patterns(ioctx=connection_pool.ioctx), report)


def _run(pool: PoolView, directory: Path, patterns: Patterns, report: Report) -> None:
    orders = Orders(socket=directory / "csi.sock", clusters_file=write_clusters_file(pool, directory))
    calls = Calls(pool=pool)
    # A snapshot waits for the watch of a dead process: kills that came faster would be met in the same step each time.
    pool.cluster.ceph("config", "set", "osd", "osd_client_watch_timeout", str(_WATCH_SECONDS))
    with victims.controller_at(orders.socket) as controller:
        with victims.victim(orders):
            _make_bystanders(calls, patterns, controller)
        before = remains_of(pool)
        callers = [_Caller(number, calls, patterns, controller, _SEED) for number in range(_CALLERS)]
        with _described(pool, report), _at_work(callers):
            _kill_again_and_again(orders)
            survivor = victims.start(orders)
        with closing(survivor):
            _in_parallel([caller.check_and_delete_all for caller in callers])
    leaks = wait_until_clean(pool, before, seconds=_CLEAN_SECONDS)
    mended = _mend(pool)
    left = wait_until_clean(pool, before, seconds=_CLEAN_SECONDS if leaks else 0.0)
    done: Counter[str] = sum((caller.done for caller in callers), Counter())
    counts = ", ".join(f"{rpc} {count}" for rpc, count in sorted(done.items()))
    summary = f"{_KILLS} kills (seed {_SEED}), {_CALLERS} callers, completed: {counts}"
    report("summary", [f"{summary}; leaks: {len(leaks)}, after fsck --repair: {len(left)}", *leaks])
    report("leaks.txt", [*leaks, "", mended, "", *left])
    assert not left, "\n".join(left)


def _kill_again_and_again(orders: Orders) -> None:
    chance = random.Random(_SEED)  # noqa: S311 (a test that can be repeated)
    for _ in range(_KILLS):
        with victims.victim(orders):
            time.sleep(chance.uniform(0.05, _MOST_SECONDS_ALIVE))


def _make_bystanders(calls: Calls, patterns: Patterns, controller: csi_pb2_grpc.ControllerStub) -> None:
    """Make a volume, a snapshot, a clone and a restored volume that nothing happens to: no repair may touch them."""
    volume_id = calls.create("bystander").on(controller).volume.volume_id
    patterns.write(f"csi-vol-{volume_id[-36:]}", "bystander")
    snapshot_id = calls.snapshot(volume_id, "bystander").on(controller).snapshot.snapshot_id
    calls.create("bystander-clone", volume_id=volume_id).on(controller)
    calls.create("bystander-restored", snapshot_id=snapshot_id).on(controller)


def _mend(pool: PoolView) -> str:
    """Run ``csi-host rbd fsck`` as an administrator would when no controller runs, and return what it says."""
    arguments = ["--monitors", ",".join(pool.cluster.monitors), "--secrets", str(pool.cluster.secret_file)]
    arguments += ["--pool", pool.name, "--namespace", pool.namespace, "--repair", "--min-age", "0s"]
    command = [str(Path(sys.executable).with_name("csi-host")), "rbd", "fsck", *arguments]
    # 1 says that something is left to a person.
    return run(command, timeout=_CLEAN_SECONDS, ok_codes=(0, 1)).stdout


@contextmanager
def _described(pool: PoolView, report: Report) -> Iterator[None]:
    """Report what there is when something went wrong: the pool goes with the test."""
    try:
        yield
    except BaseException:
        objects = remains_of(pool).objects
        report(
            "failed.txt",
            [f"{name} {key} {value}" for name, keys in sorted(objects.items()) for key, value in sorted(keys.items())],
        )
        raise


@contextmanager
def _at_work(callers: Sequence[_Caller]) -> Iterator[None]:
    """Have the callers work for the length of the ``with``, and end what they are at; raises what went wrong."""
    stop = threading.Event()
    threads = [threading.Thread(target=caller.run, args=[stop]) for caller in callers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    failures = [caller.failure for caller in callers if caller.failure is not None]
    # pytest shortens what it shows of a list: each is told in full.
    told = [" ".join([str(failure), *getattr(failure, "__notes__", [])]) for failure in failures]
    assert not failures, "\n".join(told)


def _in_parallel(functions: Sequence[Callable[[], None]]) -> None:
    with ThreadPoolExecutor(len(functions)) as threads:
        for done in [threads.submit(function) for function in functions]:
            done.result()
