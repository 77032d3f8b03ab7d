import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from grpc import StatusCode

from csi_host.errors import OperationPending
from csi_host.locks import SnapshotLocks, VolumeLocks
from csi_host.request import Request, serving


def test_a_second_caller_gets_aborted_naming_the_holder() -> None:
    locks = VolumeLocks()
    with (
        serving(Request(rpc="CreateVolume", request_id="req-1")),
        locks.hold("pvc-1"),
        pytest.raises(OperationPending) as caught,
        serving(Request(rpc="DeleteVolume", request_id="req-2")),
        locks.hold("pvc-1"),
    ):
        pytest.fail("the lock was given twice")
    assert caught.value.code is StatusCode.ABORTED
    assert str(caught.value).startswith("an operation with the given Volume ID pvc-1 already exists")
    assert "CreateVolume (request req-1) for " in str(caught.value)


def test_background_work_is_named_as_a_holder() -> None:
    locks = VolumeLocks()
    with locks.hold("pvc-1"), pytest.raises(OperationPending, match="background work"), locks.hold("pvc-1"):
        pytest.fail("the lock was given twice")


def test_snapshot_locks_speak_of_snapshots() -> None:
    locks = SnapshotLocks()
    with locks.hold("s"), pytest.raises(OperationPending, match="the given Snapshot ID s "), locks.hold("s"):
        pytest.fail("the lock was given twice")


def test_all_keys_are_taken_or_none() -> None:
    locks = VolumeLocks()
    with locks.hold("b"):
        with pytest.raises(OperationPending), locks.hold("a", "b", "c"):
            pytest.fail("b is taken")
        assert set(locks.holders()) == {"b"}
        with locks.hold("a", "c"):
            assert set(locks.holders()) == {"a", "b", "c"}


def test_the_same_key_twice_is_one_key() -> None:
    locks = VolumeLocks()
    with locks.hold("a", "a"):
        assert set(locks.holders()) == {"a"}
    assert not locks.holders()


def test_a_failure_within_gives_the_lock_back() -> None:
    locks = VolumeLocks()
    with pytest.raises(ValueError, match="boom"), locks.hold("a"):
        raise ValueError("boom")
    assert not locks.holders()
    with locks.hold("a"):
        pass


def test_of_32_threads_exactly_one_holds_the_lock_at_any_time() -> None:
    locks = VolumeLocks()
    everybody_tried, begin = threading.Barrier(32), threading.Barrier(32)

    def attempt(_number: int) -> str:
        begin.wait(10)
        try:
            with locks.hold("pvc-1", "handle-1"):
                everybody_tried.wait(10)
                return "held"
        except OperationPending:
            everybody_tried.wait(10)
            return "refused"

    with ThreadPoolExecutor(32) as pool:
        outcomes = list(pool.map(attempt, range(32)))
    assert sorted(outcomes) == ["held"] + ["refused"] * 31
    assert not locks.holders()


def test_threads_that_hold_in_turn_never_overlap() -> None:
    locks = VolumeLocks()
    inside: list[int] = []
    overlaps: list[list[int]] = []

    def work(number: int) -> None:
        for _ in range(200):
            try:
                with locks.hold("pvc-1"):
                    inside.append(number)
                    if len(inside) > 1:
                        overlaps.append(list(inside))
                    inside.remove(number)
            except OperationPending:
                continue

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(work, range(32)))
    assert not overlaps
