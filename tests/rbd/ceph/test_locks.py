"""Leased locks on a real OSD, by two clients of it."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import count
from typing import Any

import pytest

from csi_host_rbd.ceph import omap
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.connections import Connections
from csi_host_rbd.ceph.failures import BackendTimeout, Blocklisted
from csi_host_rbd.ceph.lease_keeper import LeaseKeeper
from csi_host_rbd.ceph.leases import Lease, LockLost
from csi_host_rbd.ceph.lock_class import LockType, LockUnreadable, read_lock
from csi_host_rbd.ceph.locks import LeasedLock, LockHeld, LockNotBroken
from csi_host_rbd.credentials import Credentials
from csi_host_rbd.devcluster import DevCluster
from csi_host_rbd.testing.pools import PoolView

pytestmark = pytest.mark.ceph

_NAME = "csi.lock.test"
# No test waits for one of the first kind to run out.
_LONG_SECONDS = 600.0
_SHORT_SECONDS = 1.0

_NUMBERS = count()


@pytest.fixture
def other_store(
    make_connections: Callable[..., Connections], mon_host: str, credentials: Credentials, pool: PoolView
) -> Iterator[Pool]:
    """The same place as ``store``, by another client."""
    with make_connections().use(mon_host, credentials) as connection:
        yield connection.pool(pool.name, pool.namespace)


def _lock(store: Pool, *, seconds: float = _LONG_SECONDS, shared: bool = False, cookie: str = "c") -> LeasedLock:
    return LeasedLock(
        pool=store,
        object_name=_NAME,
        lock_type=LockType.SHARED if shared else LockType.EXCLUSIVE,
        cookie=f"{cookie}.{next(_NUMBERS)}" if shared else cookie,
        description=f"lock of client.{store.client_id}",
        lease=Lease(what="volume v", seconds=seconds),
    )


def _objects(pool: PoolView) -> list[str]:
    # Making a namespace makes some of its own, more of them from release to release.
    return [name for name in pool.objects() if not name.startswith("rbd_")]


def _wait_until_run_out(lock: LeasedLock) -> None:
    deadline = time.monotonic() + 2 * lock.lease.seconds + 10
    while lock.lease.is_fresh:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # The margin between what the holder relies on and what the OSD counts.
    time.sleep(lock.lease.seconds / 3)


def test_a_lock_is_one_operation_each_way_and_leaves_nothing(store: Pool, pool: PoolView, counter: Any) -> None:
    with counter.counting() as sent:
        lock = _lock(store)
        lock.acquire()
        lock.release()
    assert sent.operations == 2
    assert _objects(pool) == []


def test_a_taken_lock_names_its_holder(store: Pool, other_store: Pool) -> None:
    lock = _lock(store)
    lock.acquire()
    with pytest.raises(LockHeld) as caught:
        _lock(other_store, cookie="d").acquire()
    (owner,) = caught.value.owners
    assert owner.description == f"lock of client.{store.client_id}"
    assert owner.is_client(store.client_id)
    assert owner.address.startswith("127.0.0.1:0/")
    lock.release()
    _lock(other_store).acquire()


def test_shared_locks_go_along_with_each_other_only(store: Pool, other_store: Pool, pool: PoolView) -> None:
    first, second, whole = _lock(store, shared=True), _lock(other_store, shared=True), _lock(other_store)
    first.acquire()
    second.acquire()
    with pytest.raises(LockHeld):
        whole.acquire()
    first.release()
    with pytest.raises(LockHeld):
        whole.acquire()
    second.release()
    assert _objects(pool) == []
    whole.acquire()
    with pytest.raises(LockHeld):
        _lock(store, shared=True).acquire()
    whole.release()
    assert _objects(pool) == []


@pytest.mark.parametrize("is_shared", [False, True])
def test_a_lock_that_ran_out_is_broken_and_its_holder_can_write_no_more(
    store: Pool, other_store: Pool, pool: PoolView, is_shared: bool
) -> None:
    lost = _lock(store, seconds=_SHORT_SECONDS, shared=is_shared)
    lost.acquire()
    _wait_until_run_out(lost)
    lock = _lock(other_store)
    lock.acquire()
    with pytest.raises(Blocklisted):
        omap.set_keys(store, "written-late", {"a": "b"})
    with pytest.raises((Blocklisted, LockLost)):
        lost.release()
    with pytest.raises(LockLost, match="before writing"):
        lost.lease.check("writing")
    lock.release()
    assert _objects(pool) == []


def test_a_reader_breaks_a_dead_writers_lock(store: Pool, other_store: Pool, pool: PoolView) -> None:
    lost = _lock(store, seconds=_SHORT_SECONDS)
    lost.acquire()
    _wait_until_run_out(lost)
    readers = [_lock(other_store, shared=True) for _ in range(2)]
    for reader in readers:
        reader.acquire()
    for reader in readers:
        reader.release()
    assert _objects(pool) == []
    with pytest.raises(Blocklisted):
        omap.set_keys(store, "written-late", {"a": "b"})


def test_a_dead_reader_keeps_its_place_beside_a_living_one_until_a_writer_comes(
    store: Pool, other_store: Pool, pool: PoolView
) -> None:
    dead = _lock(store, seconds=_SHORT_SECONDS, shared=True)
    dead.acquire()
    _wait_until_run_out(dead)
    living = _lock(other_store, shared=True)
    living.acquire()
    with pytest.raises(LockHeld):
        _lock(other_store).acquire()
    living.release()
    assert _objects(pool) == [_NAME]
    writer = _lock(other_store)
    writer.acquire()
    writer.release()
    assert _objects(pool) == []
    with pytest.raises(Blocklisted):
        omap.set_keys(store, "written-late", {"a": "b"})


def test_a_lock_that_ran_out_and_nobody_wanted_is_still_its_holders(store: Pool, pool: PoolView) -> None:
    lock = _lock(store, seconds=_SHORT_SECONDS)
    lock.acquire()
    _wait_until_run_out(lock)
    with pytest.raises(LockLost):
        lock.lease.check("writing")
    lock.renew()
    assert lock.wait_for_answer(10)
    lock.lease.check("writing")
    _wait_until_run_out(lock)
    lock.release()
    assert _objects(pool) == []


def test_what_a_client_left_behind_itself_it_takes_over_without_shutting_itself_out(
    store: Pool, pool: PoolView
) -> None:
    _lock(store).acquire()
    again = _lock(store)
    again.acquire()
    again.release()
    left = _lock(store, seconds=_SHORT_SECONDS, cookie="of another process of the same connection")
    left.acquire()
    _wait_until_run_out(left)
    lock = _lock(store)
    lock.acquire()
    omap.set_keys(store, "written", {"a": "b"})
    lock.release()
    assert _objects(pool) == ["written"]


def test_a_held_lock_is_renewed_and_not_broken(store: Pool, other_store: Pool, pool: PoolView) -> None:
    keeper = LeaseKeeper(lease_seconds=3.0)
    lock = _lock(store, seconds=3.0)
    lock.acquire()
    keeper.keep(lock)
    deadline = time.monotonic() + 7.0
    while time.monotonic() < deadline:
        with pytest.raises(LockHeld):
            _lock(other_store, seconds=3.0).acquire()
        time.sleep(0.5)
    lock.lease.check("writing")
    keeper.drop(lock)
    lock.release()
    keeper.close()
    assert _objects(pool) == []


def test_a_renewal_that_comes_after_the_break_takes_nothing_back(store: Pool, other_store: Pool) -> None:
    lost = _lock(store, seconds=_SHORT_SECONDS)
    lost.acquire()
    _wait_until_run_out(lost)
    lock = _lock(other_store)
    lock.acquire()
    lost.renew()
    assert lost.wait_for_answer(10)
    with pytest.raises(LockLost, match="another controller has broken it"):
        lost.lease.check("writing")
    assert read_lock(other_store, _NAME, "csi.holder").owners[0].is_client(other_store.client_id)
    lock.release()


def test_a_breaker_that_dies_half_way_is_followed_by_another(store: Pool, other_store: Pool, pool: PoolView) -> None:
    lost = _lock(store, seconds=_SHORT_SECONDS)
    lost.acquire()
    _wait_until_run_out(lost)

    class KilledError(Exception):
        pass

    def be_killed(_: str) -> None:
        raise KilledError

    blocklist, other_store.blocklist = other_store.blocklist, be_killed
    breaker = _lock(other_store, seconds=_SHORT_SECONDS)
    with pytest.raises(KilledError):
        breaker.acquire()
    other_store.blocklist = blocklist
    with pytest.raises(LockHeld):
        _lock(other_store, cookie="e").acquire()
    time.sleep(1.5 * _SHORT_SECONDS)
    lock = _lock(other_store, cookie="e")
    lock.acquire()
    lock.release()
    assert _objects(pool) == []


def test_a_holder_that_cannot_be_shut_out_keeps_its_lock(
    ceph: DevCluster, make_connections: Callable[..., Connections], mon_host: str, store: Pool, pool: PoolView
) -> None:
    lost = _lock(store, seconds=_SHORT_SECONDS)
    lost.acquire()
    _wait_until_run_out(lost)
    key = ceph.ceph("auth", "get-or-create-key", "client.weak", "mon", "allow r", "osd", "profile rbd").strip()
    with make_connections().use(mon_host, Credentials(user_id="weak", key=key)) as connection:
        weak = _lock(connection.pool(pool.name, pool.namespace))
        with pytest.raises(LockNotBroken, match="profile rbd") as caught:
            weak.acquire()
    assert not caught.value.is_final
    # Nothing has changed for the holder.
    lost.renew()
    assert lost.wait_for_answer(10)
    lost.lease.check("writing")
    lost.release()
    assert _objects(pool) == []


def test_a_foreign_lock_in_the_objects_place_is_a_holder_like_any_other(store: Pool, pool: PoolView) -> None:
    pool.create_object(_NAME)
    pool.set_key(_NAME, "junk", "junk")
    pool.cluster.rados(
        "--pool", pool.name, "--namespace", pool.namespace, "lock", "get", _NAME, "csi.holder", "--lock-cookie", "x"
    )
    lock = _lock(store)
    lock.acquire()
    lock.release()
    assert _objects(pool) == []


def test_junk_instead_of_a_lock_is_left_for_a_person(store: Pool, pool: PoolView) -> None:
    pool.create_object(_NAME)
    pool.cluster.rados("--pool", pool.name, "--namespace", pool.namespace, "setxattr", _NAME, "lock.csi.holder", "junk")
    with pytest.raises(LockUnreadable, match=rf"rados --pool {pool.name} --namespace '{pool.namespace}' rm {_NAME}"):
        _lock(store).acquire()
    pool.remove_object(_NAME)
    lock = _lock(store)
    lock.acquire()
    lock.release()


def test_junk_in_the_object_besides_the_lock_goes_with_it(store: Pool, pool: PoolView) -> None:
    pool.create_object(_NAME)
    pool.set_key(_NAME, "junk", "junk")
    lock = _lock(store)
    lock.acquire()
    lock.release()
    assert _objects(pool) == []


def test_with_the_osd_hung_taking_a_lock_ends_and_it_can_be_taken_after_it(
    store: Pool, pool: PoolView, hung: Callable[[], AbstractContextManager[None]]
) -> None:
    _lock(store).acquire()
    with hung(), pytest.raises(BackendTimeout):
        _lock(store).acquire()
    lock = _lock(store)
    lock.acquire()
    lock.release()
    assert _objects(pool) == []


def test_with_the_osd_hung_a_lease_runs_out_and_comes_back_with_the_osd(
    store: Pool, pool: PoolView, hung: Callable[[], AbstractContextManager[None]]
) -> None:
    keeper = LeaseKeeper(lease_seconds=_SHORT_SECONDS)
    lock = _lock(store, seconds=_SHORT_SECONDS)
    lock.acquire()
    keeper.keep(lock)
    with hung():
        _wait_until_run_out(lock)
        with pytest.raises(LockLost, match="was not renewed"):
            lock.lease.check("writing")
    deadline = time.monotonic() + 20
    while not lock.lease.is_fresh:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    keeper.drop(lock)
    lock.release()
    keeper.close()
    assert _objects(pool) == []
