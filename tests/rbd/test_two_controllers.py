"""Two controller processes at once, with locks in the pools: killed, suspended, hung, and many callers on both."""

import random
import re
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from csi_host.proto import csi_pb2, csi_pb2_grpc
from csi_host.testing import host_process
from csi_host.testing.host_process import HostProcess
from csi_host_rbd.testing.pools import PoolView
from csi_host_rbd.testing.rig import RbdRig, rbd_rig, write_clusters_file

pytestmark = pytest.mark.ceph

_CALLERS = 32
_NAMES = 50
_CALLS_A_CALLER = 16
_LEASE_SECONDS = 3.0
_SECONDS = 60.0
_ASK_AGAIN = {grpc.StatusCode.ABORTED, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE}


@dataclass(frozen=True, kw_only=True)
class _Controller:
    """A csi-host process of a node's name, and the calls of a test."""

    process: HostProcess
    stub: csi_pb2_grpc.ControllerStub
    rig: RbdRig

    def create(self, name: str) -> str:
        """Call CreateVolume and return the handle."""
        return str(self.stub.CreateVolume(self.rig.create_request(name), timeout=_SECONDS).volume.volume_id)

    def delete(self, handle: str) -> None:
        """Call DeleteVolume."""
        request = csi_pb2.DeleteVolumeRequest(volume_id=handle, secrets=self.rig.secrets)
        self.stub.DeleteVolume(request, timeout=_SECONDS)

    def signal(self, number: signal.Signals) -> None:
        self.process.process.send_signal(number)


_Make = Callable[..., _Controller]


@pytest.fixture
def make(rig: RbdRig, tmp_path: Path) -> Iterator[_Make]:
    """Starts controllers by their node's name; ``rig`` only fills in the requests."""
    with ExitStack() as stack:

        def make_one(node: str, *arguments: str) -> _Controller:
            directory = tmp_path / node
            directory.mkdir()
            sockets = stack.enter_context(tempfile.TemporaryDirectory(prefix="csi-"))
            process = host_process.start(
                [
                    "--driver=rbd",
                    "--controllerserver",
                    f"--nodeid={node}",
                    f"--cephcsiconfig={write_clusters_file(rig.pool, directory)}",
                    "--lockbackend=rados",
                    *arguments,
                ],
                socket=Path(sockets) / "csi.sock",
                log_file=directory / "host.log",
            )
            stack.callback(_end, process)
            channel = stack.enter_context(grpc.insecure_channel(process.endpoint))
            return _Controller(process=process, stub=csi_pb2_grpc.ControllerStub(channel), rig=rig)

        yield make_one


def _end(process: HostProcess) -> None:
    process.process.kill()
    process.process.wait()


def _lock_objects(pool: PoolView) -> list[str]:
    return [name for name in pool.objects() if name.startswith("csi.lock.")]


def _until_done(call: Callable[[], Any], *, seconds: float = _SECONDS) -> tuple[Any, float, list[str]]:
    """Repeat a call while it is to be asked again: its result, how long that took, and what it was told meanwhile."""
    begun = time.monotonic()
    told: list[str] = []
    while True:
        try:
            return call(), time.monotonic() - begun, told
        except grpc.RpcError as error:
            if error.code() not in _ASK_AGAIN or time.monotonic() > begun + seconds:
                raise
            told.append(str(error.details()))
        time.sleep(0.05)


def _code(call: Future[Any]) -> grpc.StatusCode:
    error = call.exception(timeout=_SECONDS)
    assert isinstance(error, grpc.RpcError)
    code: grpc.StatusCode = error.code()
    return code


def _assert_consistent(pool: PoolView, names: list[str], *, has_nameless: bool = False) -> int:
    """Every name is one whole volume or nothing, and there is nothing else; return how many there are."""
    journal = pool.journal()
    directory = journal.pop("csi.volumes.default")
    assert set(directory) <= {f"csi.volume.{name}" for name in names}
    objects = {f"csi.volume.{uuid}" for uuid in directory.values()}
    assert objects <= set(journal)
    # An object that a kill kept from getting its name is all that may be left (journal.py).
    assert has_nameless or objects == set(journal)
    for key, uuid in directory.items():
        assert "csi.volume." + journal[f"csi.volume.{uuid}"]["csi.volname"] == key
    assert pool.images() == sorted(f"csi-vol-{uuid}" for uuid in directory.values())
    return len(directory)


def test_32_callers_over_two_controllers_create_and_delete_the_same_50_names(make: _Make, rig: RbdRig) -> None:
    controllers = [make("node-a"), make("node-b")]
    names = [f"pvc-{number}" for number in range(_NAMES)]
    handles: dict[str, str] = {}
    outcomes: dict[str, int] = {}
    guard = threading.Lock()

    def count(outcome: str) -> None:
        with guard:
            outcomes[outcome] = outcomes.get(outcome, 0) + 1

    def live(caller: int) -> None:
        controller, choices = controllers[caller % 2], random.Random(caller)  # noqa: S311
        for _ in range(_CALLS_A_CALLER):
            name = choices.choice(names)
            try:
                if choices.random() < 0.5 or name not in handles:
                    handles[name] = controller.create(name)
                    count("created")
                else:
                    controller.delete(handles[name])
                    count("deleted")
            except grpc.RpcError as error:
                place = "the other process" if "on node" in str(error.details()) else "the same process"
                count(f"{error.code().name}, held in {place}")

    with ThreadPoolExecutor(_CALLERS) as callers:
        list(callers.map(live, range(_CALLERS)))
    print(outcomes)  # noqa: T201 - shown with -s
    assert set(outcomes) == {
        "created",
        "deleted",
        "ABORTED, held in the other process",
        "ABORTED, held in the same process",
    }, outcomes
    assert _lock_objects(rig.pool) == []
    _assert_consistent(rig.pool, names)
    # Whoever is asked: one volume a name, and then none.
    with ThreadPoolExecutor(_CALLERS) as callers:
        made = [list(callers.map(controller.create, names)) for controller in controllers]
        assert made[0] == made[1]
        assert _assert_consistent(rig.pool, names) == _NAMES
        list(callers.map(lambda number: controllers[number % 2].delete(made[0][number]), range(_NAMES)))
    assert rig.pool.journal() == {"csi.volumes.default": {}}
    assert rig.pool.images() == []
    assert _lock_objects(rig.pool) == []
    rig.pool.wait_until_trash_is_empty()
    for controller in controllers:
        controller.process.stop()


@pytest.fixture
def deleting(make: _Make, rig: RbdRig) -> Iterator[tuple[_Controller, _Controller, str, Future[None]]]:
    """Two controllers; the first is in the middle of deleting pvc-1, with the image in the trash and no manager."""
    a, b = (make(node, f"--locklease={_LEASE_SECONDS:g}s") for node in ("node-a", "node-b"))
    b.delete(b.create("warm-up"))
    handle = a.create("pvc-1")
    rig.pool.cluster.stop_manager()
    with ThreadPoolExecutor(1) as caller:
        call = caller.submit(a.delete, handle)
        try:
            deadline = time.monotonic() + 10
            while rig.pool.images():
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield a, b, handle, call
        finally:
            rig.pool.cluster.resume_manager()
            _end(a.process)


_Deleting = tuple[_Controller, _Controller, str, "Future[None]"]


def test_a_lock_names_its_holder_to_the_other_controller(deleting: _Deleting) -> None:
    _, b, handle, _ = deleting
    for call, what in ((lambda: b.delete(handle), handle), (lambda: b.create("pvc-1"), "pvc-1")):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() is grpc.StatusCode.ABORTED
        assert re.fullmatch(
            rf"an operation with the given Volume ID {re.escape(what)} already exists: it has been held by "
            r"DeleteVolume \(request [^)]+\) on node node-a for \d+\.\d s",
            str(caught.value.details()),
        )


def test_nothing_is_made_of_a_volume_that_the_other_controller_is_deleting(deleting: _Deleting, rig: RbdRig) -> None:
    _, b, handle, _ = deleting
    clone = rig.create_request(
        "pvc-2",
        volume_content_source=csi_pb2.VolumeContentSource(
            volume=csi_pb2.VolumeContentSource.VolumeSource(volume_id=handle)
        ),
    )
    snapshot = csi_pb2.CreateSnapshotRequest(source_volume_id=handle, name="snapshot-1", secrets=rig.secrets)
    calls: list[Callable[[], Any]] = [
        partial(b.stub.CreateVolume, clone, timeout=_SECONDS),
        partial(b.stub.CreateSnapshot, snapshot, timeout=_SECONDS),
    ]
    for call in calls:
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() is grpc.StatusCode.ABORTED
        assert str(caught.value.details()).startswith(
            f"a Delete operation with given id {handle} already exists: it has been held by DeleteVolume"
        )


def test_a_killed_holder_frees_its_locks_within_the_lease(deleting: _Deleting, rig: RbdRig) -> None:
    a, b, handle, call = deleting
    assert len(_lock_objects(rig.pool)) == 3
    a.signal(signal.SIGKILL)
    assert _code(call) is grpc.StatusCode.UNAVAILABLE
    rig.pool.cluster.resume_manager()
    _, seconds, told = _until_done(lambda: b.delete(handle))
    assert all("on node node-a" in one for one in told)
    # A second for each of the three clients to be shut out and for a busy machine.
    assert seconds < _LEASE_SECONDS + 3
    assert rig.pool.journal() == {"csi.volumes.default": {}}
    assert _lock_objects(rig.pool) == []
    rig.pool.wait_until_trash_is_empty()


def test_a_holder_that_was_suspended_and_goes_on_after_its_lock_was_broken_does_no_harm(
    deleting: _Deleting, rig: RbdRig
) -> None:
    a, b, handle, call = deleting
    a.signal(signal.SIGSTOP)
    rig.pool.cluster.resume_manager()
    _until_done(lambda: b.delete(handle))
    other = b.create("pvc-1")
    assert other != handle
    a.signal(signal.SIGCONT)
    assert _code(call) in {grpc.StatusCode.ABORTED, grpc.StatusCode.UNAVAILABLE}
    assert b.create("pvc-1") == other
    assert _assert_consistent(rig.pool, ["pvc-1"]) == 1
    # It has a new connection by its next call but one, and is whole.
    assert _until_done(lambda: a.create("pvc-1"))[0] == other
    a.delete(other)
    assert rig.pool.journal() == {"csi.volumes.default": {}}
    assert _lock_objects(rig.pool) == []
    rig.pool.wait_until_trash_is_empty()


def test_holders_suspended_at_any_moment_of_a_create_do_no_harm(make: _Make, rig: RbdRig) -> None:
    a, b = (make(node, "--locklease=1s") for node in ("node-a", "node-b"))
    choices = random.Random(4)  # noqa: S311
    for controller in (a, b):
        controller.delete(controller.create("warm-up"))
    for number in range(8):
        name = f"pvc-{number}"
        with ThreadPoolExecutor(1) as caller:
            call = caller.submit(a.create, name)
            time.sleep(choices.uniform(0.0, 0.02))
            a.signal(signal.SIGSTOP)
            try:
                handle = _until_done(partial(b.create, name))[0]
            finally:
                a.signal(signal.SIGCONT)
            error = call.exception(timeout=_SECONDS)
            if error is None:
                assert call.result() == handle
            else:
                assert isinstance(error, grpc.RpcError)
                assert error.code() in _ASK_AGAIN, error.details()
        # What it had begun, and could not take back as it was shut out, its next call removes.
        assert _until_done(partial(a.create, name))[0] == handle
        assert _assert_consistent(rig.pool, [name]) == 1
        _until_done(partial(b.delete, handle))
    assert rig.pool.journal() == {"csi.volumes.default": {}}
    assert rig.pool.images() == []
    rig.pool.wait_until_trash_is_empty()


def test_holders_killed_at_any_moment_leave_nothing_that_the_other_one_does_not_finish(
    make: _Make, rig: RbdRig
) -> None:
    b = make("node-b", f"--locklease={_LEASE_SECONDS:g}s")
    a = make("node-a", f"--locklease={_LEASE_SECONDS:g}s")
    names = [f"pvc-{number}" for number in range(16)]
    # What is being deleted, by name; a name without a handle is being created.
    doomed: dict[str, str] = {}
    a.delete(a.create("warm-up"))
    with ThreadPoolExecutor(len(names)) as callers:

        def live(name: str) -> None:
            while True:
                doomed.pop(name, None)
                doomed[name] = a.create(name)
                a.delete(doomed[name])

        def ask_the_other_one(name: str) -> float:
            seconds = _until_done(lambda: b.delete(doomed[name]))[1] if name in doomed else 0.0
            return seconds + _until_done(lambda: b.create(name))[1]

        calls = [callers.submit(live, name) for name in names]
        time.sleep(1.0)
        a.signal(signal.SIGKILL)
        assert {_code(call) for call in calls} <= {grpc.StatusCode.UNAVAILABLE}
        assert _lock_objects(rig.pool)
        assert max(callers.map(ask_the_other_one, names)) < _LEASE_SECONDS + 5
        assert _lock_objects(rig.pool) == []
        assert _assert_consistent(rig.pool, names, has_nameless=True) == len(names)
        list(callers.map(lambda name: b.delete(b.create(name)), names))
    assert _assert_consistent(rig.pool, names, has_nameless=True) == 0
    assert rig.pool.images() == []
    rig.pool.wait_until_trash_is_empty()


def test_with_the_cluster_hung_calls_end_and_either_controller_goes_on_after_it(make: _Make, rig: RbdRig) -> None:
    a, b = (make(node, "--locklease=2s", "--cephoptimeout=2s") for node in ("node-a", "node-b"))
    for controller in (a, b):
        controller.delete(controller.create("warm-up"))
    with ThreadPoolExecutor(2) as callers:
        calls = [callers.submit(a.create, "pvc-1"), callers.submit(b.create, "pvc-2")]
        time.sleep(0.01)
        rig.pool.cluster.stop_osd()
        try:
            for call in calls:
                error = call.exception(timeout=_SECONDS)
                assert error is None or (isinstance(error, grpc.RpcError) and error.code() in _ASK_AGAIN)
        finally:
            rig.pool.cluster.resume_osd()
    # Each is asked for what the other one was at.
    handles = [_until_done(lambda: b.create("pvc-1"))[0], _until_done(lambda: a.create("pvc-2"))[0]]
    assert _assert_consistent(rig.pool, ["pvc-1", "pvc-2"]) == 2
    for handle in handles:
        _until_done(partial(a.delete, handle))
    assert rig.pool.journal() == {"csi.volumes.default": {}}
    assert _lock_objects(rig.pool) == []


def test_the_dump_of_a_process_names_the_locks_it_holds(deleting: _Deleting) -> None:
    a, _, handle, _ = deleting
    a.signal(signal.SIGUSR1)
    deadline = time.monotonic() + 10
    while "thread dump" not in a.process.log():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    log = a.process.log()
    assert "locks held" in log
    assert handle in log
    assert "thread csi-host-leases" in log


def test_with_the_memory_backend_not_one_operation_is_added(
    pool: PoolView, tmp_path_factory: pytest.TempPathFactory
) -> None:
    spent: dict[str, list[int]] = {}
    for backend in ("memory", "rados"):
        options = {"lockbackend": backend}
        with rbd_rig(pool, tmp_path_factory.mktemp(backend), options=options) as rig:
            rig.delete(rig.create("warm-up").volume_id)
            with rig.counter.counting() as create:
                volume = rig.create("pvc-1")
            with rig.counter.counting() as delete:
                rig.delete(volume.volume_id)
        spent[backend] = [create.operations, delete.operations]
    # One lock for the name; for a deletion those of the handle, of the operation and of the name; each there and back.
    assert [rados - memory for memory, rados in zip(*spent.values(), strict=True)] == [2, 6]
