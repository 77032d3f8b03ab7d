"""The locks of two controllers, on a real cluster: two RadosLocks, each with a client of its own."""

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

import pytest

from csi_host.errors import CsiError, OperationPending
from csi_host.locks import Operation, OperationLocks, SnapshotLocks
from csi_host.request import Request, serving
from csi_host_rbd.ceph import omap
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.connections import Connections, Timeouts
from csi_host_rbd.ceph.failures import BackendTimeout, Blocklisted, ImageNotFound
from csi_host_rbd.ceph.leases import LeaseCheck, LockLost
from csi_host_rbd.ceph.writes import Writes
from csi_host_rbd.credentials import Credentials
from csi_host_rbd.devcluster import DevCluster
from csi_host_rbd.shared_locks import RadosLocks
from csi_host_rbd.testing.pools import PoolView

pytestmark = pytest.mark.ceph

_SHORT_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class _Controller:
    locks: RadosLocks
    pool: Pool


_Make = Callable[..., _Controller]


@pytest.fixture
def make(ceph: DevCluster, pool: PoolView) -> Iterator[_Make]:
    """Makes controllers by their node's name."""
    with ExitStack() as stack:

        def make_one(node: str, *, lease_seconds: float = 600.0) -> _Controller:
            connections = Connections(timeouts=Timeouts(connect=5.0, operation=5.0), writes=Writes(LeaseCheck()))
            stack.callback(connections.close)
            use = connections.use(",".join(ceph.monitors), Credentials.from_secrets(ceph.secrets()))
            connection = stack.enter_context(use)
            locks = RadosLocks(instance_id="default", node=node, lease_seconds=lease_seconds)
            stack.callback(locks.close)
            return _Controller(locks=locks, pool=connection.pool(pool.name, pool.namespace))

        yield make_one


def _lock_objects(pool: PoolView) -> list[str]:
    return [name for name in pool.objects() if name.startswith("csi.lock.")]


def test_another_controller_is_told_the_holders_node_rpc_request_and_age(make: _Make, pool: PoolView) -> None:
    a, b = make("node-a"), make("node-b")
    with serving(Request(rpc="CreateVolume", request_id="req-7")), a.locks.hold(a.pool, "pvc-1"):
        with pytest.raises(OperationPending) as caught, b.locks.hold(b.pool, "pvc-1"):
            pytest.fail("the lock was given twice")
        assert re.fullmatch(
            r"an operation with the given Volume ID pvc-1 already exists: it has been held by "
            r"CreateVolume \(request req-7\) on node node-a for \d+\.\d s",
            str(caught.value),
        )
    with b.locks.hold(b.pool, "pvc-1"):
        pass
    assert _lock_objects(pool) == []


def test_a_second_thread_of_the_same_controller_is_refused_as_well(make: _Make) -> None:
    a = make("node-a")
    with (
        a.locks.hold(a.pool, "pvc-1"),
        pytest.raises(OperationPending, match=r"the given Volume ID pvc-1 .* on node node-a"),
        a.locks.hold(a.pool, "pvc-1"),
    ):
        pytest.fail("the lock was given twice")


def test_all_keys_are_taken_or_none(make: _Make, pool: PoolView) -> None:
    a, b = make("node-a"), make("node-b")
    with b.locks.hold(b.pool, "two"):
        with pytest.raises(OperationPending, match="Volume ID two"), a.locks.hold(a.pool, "one", "two", "three"):
            pytest.fail("two is taken")
        assert len(_lock_objects(pool)) == 1
        with a.locks.hold(a.pool, "one", "three", "one"):
            assert len(_lock_objects(pool)) == 3
    assert _lock_objects(pool) == []


def test_a_volume_and_a_snapshot_of_one_name_are_two_locks(make: _Make) -> None:
    a, b = make("node-a"), make("node-b")
    with (
        a.locks.hold(a.pool, "x"),
        b.locks.hold(b.pool, "x", noun=SnapshotLocks.noun),
        pytest.raises(OperationPending, match="the given Snapshot ID x "),
        a.locks.hold(a.pool, "x", noun=SnapshotLocks.noun),
    ):
        pytest.fail("the lock was given twice")


def test_drivers_of_other_instances_have_locks_of_their_own(make: _Make) -> None:
    a = make("node-a")
    other = RadosLocks(instance_id="other", node="node-a", lease_seconds=600.0)
    with a.locks.hold(a.pool, "x"), other.hold(a.pool, "x"):
        pass
    other.close()


_SOURCES = (Operation.CREATE, Operation.CLONE, Operation.RESTORE)


@pytest.mark.parametrize("held", list(Operation))
def test_operations_of_two_controllers_conflict_where_one_of_them_changes_the_source(
    make: _Make, pool: PoolView, held: Operation
) -> None:
    a, b = make("node-a"), make("node-b")
    article = "an" if held is Operation.EXPAND else "a"
    refusal = rf"^{article} {held} operation with given id v already exists: .* R \(request 1\) on node node-a"
    with serving(Request(rpc="R", request_id="1")), a.locks.hold_operation(a.pool, held, "v"):
        for wanted in Operation:
            if held in _SOURCES and wanted in _SOURCES:
                with b.locks.hold_operation(b.pool, wanted, "v"):
                    continue
            with pytest.raises(OperationPending, match=refusal), b.locks.hold_operation(b.pool, wanted, "v"):
                pytest.fail("both were let in")
    assert _lock_objects(pool) == []


@pytest.mark.parametrize("held", list(Operation))
def test_what_conflicts_in_one_process_conflicts_between_two(make: _Make, held: Operation) -> None:
    a, b, memory = make("node-a"), make("node-b"), OperationLocks()
    with a.locks.hold_operation(a.pool, held, "v"), memory.hold(held, "v"):
        for wanted in Operation:
            if _is_refused(memory.hold(wanted, "v")):
                assert _is_refused(b.locks.hold_operation(b.pool, wanted, "v"))


def _is_refused(lock: AbstractContextManager[None]) -> bool:
    try:
        with lock:
            return False
    except OperationPending:
        return True


def test_clones_in_one_process_share_their_source(make: _Make, pool: PoolView) -> None:
    a = make("node-a")
    with a.locks.hold_operation(a.pool, Operation.CLONE, "v"), a.locks.hold_operation(a.pool, Operation.CLONE, "v"):
        assert len(_lock_objects(pool)) == 1
    assert _lock_objects(pool) == []


def test_a_failure_within_gives_the_lock_back(make: _Make, pool: PoolView) -> None:
    a = make("node-a")
    with pytest.raises(ImageNotFound), a.locks.hold(a.pool, "x"):
        raise ImageNotFound("there is none")
    assert _lock_objects(pool) == []


def test_after_a_call_that_ended_in_doubt_only_the_same_controller_goes_on_at_once(make: _Make, pool: PoolView) -> None:
    a, b = make("node-a", lease_seconds=3.0), make("node-b", lease_seconds=3.0)

    def time_out() -> None:
        # As what follows a timeout, and fails as well, reports it.
        raise ImageNotFound("it may be there or not") from BackendTimeout("no answer")

    with pytest.raises(ImageNotFound), a.locks.hold(a.pool, "x"):
        time_out()
    with pytest.raises(OperationPending), b.locks.hold(b.pool, "x"):
        pytest.fail("a write of the other controller may still be on its way")
    with a.locks.hold(a.pool, "x"):
        pass
    assert _lock_objects(pool) == []
    with pytest.raises(ImageNotFound), a.locks.hold(a.pool, "x"):
        time_out()
    _take_when_run_out(b, "x")
    with pytest.raises(Blocklisted):
        omap.set_keys(a.pool, "late", {"a": "b"})
    assert "late" not in pool.objects()


def _take_when_run_out(controller: _Controller, key: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            with controller.locks.hold(controller.pool, key):
                return
        except OperationPending:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_a_call_whose_lock_was_broken_writes_nothing_more_and_fails_in_the_end(make: _Make, pool: PoolView) -> None:
    a, b = make("node-a", lease_seconds=_SHORT_SECONDS), make("node-b")

    def be_paused_and_go_on(*, writes: bool) -> None:
        with a.locks.hold(a.pool, "x"):
            _pause(a)
            _take_when_run_out(b, "x")
            if writes:
                omap.set_keys(a.pool, "late", {"a": "b"})

    for writes in (True, False):
        with pytest.raises(CsiError) as caught:
            be_paused_and_go_on(writes=writes)
        assert isinstance(caught.value, (LockLost, Blocklisted))
        assert not caught.value.is_final
    assert "late" not in pool.objects()


def _pause(controller: _Controller) -> None:
    """Have nothing renewed any more, as in a process that is suspended."""
    controller.locks.close()


def test_what_another_program_says_of_itself_is_shown_shortened(make: _Make, pool: PoolView) -> None:
    a = make("node-a")
    with a.locks.hold(a.pool, "x"):
        (name,) = _lock_objects(pool)
    for description in ("", "junk", "[]", "{}", json.dumps({"since": "x"}), "x" * 20_000, _told("y" * 20_000)):
        for lock in ("csi.holder", "csi.lease"):
            _rados(pool, "lock", "get", name, lock, "--lock-cookie", "z", "--lock-description", description)
        refused = pytest.raises(OperationPending, match="the given Volume ID x already exists")
        with refused as caught, a.locks.hold(a.pool, "x"):
            pytest.fail("it is taken")
        assert len(str(caught.value)) < 2000
        pool.remove_object(name)


def _told(text: str) -> str:
    return json.dumps({"since": -1e400, "rpc": text, "request": text, "node": text, "operation": text})


def _rados(pool: PoolView, *arguments: str) -> None:
    pool.cluster.rados("--pool", pool.name, "--namespace", pool.namespace, *arguments)
