import pytest
from grpc import StatusCode

from csi_host_rbd.ceph.leases import Lease, LeaseCheck, LockLost, boot_seconds, relying_on
from csi_host_rbd.ceph.writes import Writes


class _Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> _Clock:
    return _Clock()


def _lease(clock: _Clock) -> Lease:
    lease = Lease(what="Volume ID pvc-1", seconds=30.0, now=clock)
    lease.renew(clock())
    return lease


def test_a_lease_is_due_after_a_third_and_relied_on_until_a_margin_before_its_end(clock: _Clock) -> None:
    lease = _lease(clock)
    assert not lease.is_due
    clock.seconds += 10.5
    assert lease.is_due
    lease.check("writing")
    clock.seconds += 14.0
    lease.check("writing")
    clock.seconds += 1.0
    with pytest.raises(LockLost) as caught:
        lease.check("writing object x")
    assert caught.value.code is StatusCode.ABORTED
    assert str(caught.value) == (
        "the lock of Volume ID pvc-1 was lost before writing object x: it was not renewed for 25.5 of its 30 s"
    )


def test_a_renewal_counts_from_when_it_was_sent(clock: _Clock) -> None:
    lease = _lease(clock)
    sent = clock()
    clock.seconds += 26.0
    assert not lease.is_fresh
    lease.renew(sent + 20.0)
    assert lease.is_fresh
    clock.seconds += 20.0
    assert not lease.is_fresh


def test_a_lock_that_another_one_took_is_lost_for_good(clock: _Clock) -> None:
    lease = _lease(clock)
    lease.lose("another controller has broken it")
    lease.renew(clock())
    with pytest.raises(LockLost, match="another controller has broken it"):
        lease.check("writing")


def test_a_lease_that_was_never_had_is_not_relied_on(clock: _Clock) -> None:
    with pytest.raises(LockLost):
        Lease(what="v", seconds=30.0, now=clock).check("writing")


def test_a_step_is_refused_when_any_lock_of_the_call_is_lost(clock: _Clock) -> None:
    writes = Writes(LeaseCheck())
    written = []

    def write(step: str) -> None:
        with writes.step(step):
            written.append(step)

    with relying_on(_lease(clock)):
        clock.seconds += 20.0
        with relying_on(_lease(clock)):
            write("first")
            clock.seconds += 6.0
            with pytest.raises(LockLost):
                write("second")
    write("third")
    assert written == ["first", "third"]


def test_the_clock_goes_on() -> None:
    before = boot_seconds()
    assert boot_seconds() >= before > 0
