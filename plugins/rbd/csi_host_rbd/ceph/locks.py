"""Locks that several controllers share: an object of the pool for each, leased, and broken only with fencing.

A lock is two advisory locks of the OSD on one object. ``csi.holder`` says who has it, and stays until it is given back
or broken; ``csi.lease`` runs out by itself, by the OSD's clock, unless the holder renews it. One of the two alone would
not do: an advisory lock that has run out is gone without a trace, and with it the address of the client that has to be
shut out before anybody else goes on. So a lock is broken like this:

1. take ``csi.lease``, which succeeds only when it has run out: from now on no holder can renew it, and no second
   breaker comes in between;
2. have the cluster blocklist the client of every holder, and wait for the OSD map that says so: what such a client
   sent and is not done yet never will be;
3. break ``csi.holder``, take it; each only while ``csi.lease`` is still ours.

What each failure leaves behind, and who mends it:

* a holder dies: the object, until its lease has run out and somebody wants the lock;
* a breaker dies: its lease runs out and the next breaker begins at 1; blocklisting again changes nothing;
* taking it times out: perhaps the lock, which the same client just takes again and everybody else can break;
* giving it back times out: likewise;
* nothing is left after it was given back: the object goes in the same operation (for a shared lock with the last).

A client never shuts itself out: what it left behind itself, after a timeout, it takes over as it is.
"""

import errno
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from csi_host.errors import Aborted, CsiError
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.failures import ArgumentRefused, ObjectNotFound, PermissionDenied
from csi_host_rbd.ceph.leases import Lease, LockLost
from csi_host_rbd.ceph.lock_class import (
    LockRequest,
    LockState,
    LockTaken,
    LockType,
    Owner,
    assert_locked,
    break_lock,
    lock,
    operate,
    operate_later,
    read_lock,
    unlock,
)

log = logging.getLogger(__name__)

_HOLDER = "csi.holder"
_LEASE = "csi.lease"
_ATTEMPTS = 3
# What a renewal is answered when the lock is another's, or this client's word counts no more.
_BROKEN = frozenset({errno.EBUSY, errno.ENOENT, errno.ESHUTDOWN, errno.EIO})


class LockHeld(Aborted):
    """Others have the lock, and their lease has not run out; nobody is in ``owners`` when they come and go."""

    def __init__(self, message: str, owners: tuple[Owner, ...]) -> None:
        super().__init__(message)
        self.owners = owners


class LockNotBroken(Aborted):
    """The holder's lease has run out, but its client cannot be shut out, so that it may still be writing."""


class LeasedLock:
    """One lock, for one call to hold; ``what`` names it in errors, ``description`` is what others are told of us."""

    def __init__(
        self, *, pool: Pool, object_name: str, lock_type: LockType, cookie: str, description: str, lease: Lease
    ) -> None:
        self.lease = lease
        self._pool = pool
        self._object = object_name
        self._type = lock_type
        self._cookie = cookie
        self._description = description
        self._what = f"lock object {pool.spec(object_name)}"
        self._guard = threading.Lock()
        self._is_over = False
        self._answered = threading.Event()
        self._answered.set()

    def acquire(self) -> None:
        """Take the lock, breaking one whose lease has run out. 1 operation where it is free, 3 where it is taken.

        Raises LockHeld, LockNotBroken.
        """
        with self._pool.writes.step(f"taking {self._what}"):
            for _ in range(_ATTEMPTS):
                with suppress(LockTaken):
                    self._take()
                    return
                with suppress(LockTaken, ObjectNotFound):
                    self._break()
                    return
                owners = self._state().owners
                if owners:
                    raise LockHeld(f"{self._what} is held by {', '.join(map(str, owners))}", owners)
        raise LockHeld(f"{self._what} is taken and given back all the time", ())

    def renew(self) -> None:
        """Ask for a renewal, unless one is under way; the answer comes on a thread of librados. 1 operation."""
        # Sent within the guard: after ``stop_renewing`` the connection may be closed at any time.
        with self._guard:
            if self._is_over or not self._answered.is_set():
                return
            self._answered.clear()
            try:
                self._send_renewal(self.lease.now())
            except CsiError as error:
                self._answered.set()
                log.info(f"{self._what} could not be renewed: {error}")

    def release(self) -> None:
        """Give the lock back. 1 operation, 2 for a shared one.

        Raises LockLost when it is ours no more: done without an error it was ours all the time.
        """
        self.stop_renewing()
        try:
            self._give_back()
        except ObjectNotFound as error:
            self.lease.lose("another controller has broken it")
            raise LockLost(f"{self._what} was broken by another controller while it was held; ask again") from error

    def stop_renewing(self) -> None:
        """Ask for no more renewals: the lock is given back now, or left to run out."""
        with self._guard:
            self._is_over = True

    def wait_for_answer(self, seconds: float) -> bool:
        """Wait until no renewal is under way; whether that came true."""
        return self._answered.wait(seconds)

    def _take(self) -> None:
        sent = self.lease.now()
        operate(self._pool, self._object, self._holder_request(), self._lease_request())
        self.lease.renew(sent)

    def _break(self) -> None:
        sent = self.lease.now()
        operate(self._pool, self._object, self._lease_request())
        with self._lease_given_back_on_failure():
            for owner in self._dead():
                self._shut_out(owner)
                with suppress(ObjectNotFound):
                    operate(self._pool, self._object, self._lease_is_ours(), break_lock(_HOLDER, owner))
            operate(self._pool, self._object, self._lease_is_ours(), self._holder_request())
        self.lease.renew(sent)

    def _dead(self) -> tuple[Owner, ...]:
        """Return who has to be shut out: nobody who may share the lock with us, as such a one may be alive."""
        state = self._state()
        return () if self._type == state.lock_type == LockType.SHARED else state.owners

    def _shut_out(self, owner: Owner) -> None:
        if owner.is_client(self._pool.client_id):
            return
        log.warning(f"{self._what}: the lease of {owner} has run out ({owner.description!r}); it is blocklisted")
        try:
            self._pool.blocklist(owner.address)
        except (PermissionDenied, ArgumentRefused) as error:
            raise LockNotBroken(
                f"{self._what}: the lease of {owner} has run out, but that client cannot be shut out: {error}; the "
                "user needs the monitor capability `profile rbd`"
            ) from error

    @contextmanager
    def _lease_given_back_on_failure(self) -> Iterator[None]:
        try:
            yield
        except CsiError:
            with suppress(CsiError):
                operate(self._pool, self._object, unlock(_LEASE, self._cookie))
                self._remove_if_free()
            raise

    def _give_back(self) -> None:
        holder, lease = unlock(_HOLDER, self._cookie), unlock(_LEASE, self._cookie)
        if self._type is LockType.EXCLUSIVE:
            operate(self._pool, self._object, holder, removes=True)
            return
        try:
            operate(self._pool, self._object, holder, lease)
        except ObjectNotFound:
            # The lease has run out, which is no matter while nobody has made use of it.
            operate(self._pool, self._object, holder)
        with suppress(CsiError):
            self._remove_if_free()

    def _remove_if_free(self) -> None:
        free = (lock(name, LockType.EXCLUSIVE, self._cookie) for name in (_HOLDER, _LEASE))
        operate(self._pool, self._object, *free, removes=True)

    def _holder_request(self) -> LockRequest:
        # What this client left behind itself, after a timeout, is not in its way.
        return lock(_HOLDER, self._type, self._cookie, description=self._description, may_renew=True)

    def _send_renewal(self, sent: float) -> None:
        operate_later(
            self._pool,
            self._object,
            assert_locked(_HOLDER, self._type, self._cookie),
            self._lease_request(),
            done=lambda number: self._renewed(sent, number),
        )

    def _lease_request(self) -> LockRequest:
        return lock(_LEASE, self._type, self._cookie, seconds=self.lease.seconds, may_renew=True)

    def _lease_is_ours(self) -> LockRequest:
        return assert_locked(_LEASE, self._type, self._cookie)

    def _renewed(self, sent: float, number: int) -> None:
        if number == 0:
            self.lease.renew(sent)
        elif number in _BROKEN:
            self.lease.lose("another controller has broken it, or the cluster has shut this client out")
        self._answered.set()

    def _state(self) -> LockState:
        return read_lock(self._pool, self._object, _HOLDER)
