"""The second half of a lock where several controllers are active at once: the option ``lockbackend``.

The locks in the process's memory come first, in the first lines of an RPC, and cost nothing. With ``rados`` a lock in
the pool follows as soon as the pool is known: where the journal is that the name or handle belongs to, in its RADOS
namespace, so that two controllers which can meet in a volume meet in its lock. With ``memory``, which is right for one
active controller, there is no second half, and not one operation more.

Operations on a source are shared or exclusive here: what reads a volume or snapshot (Create, a snapshot of it; Clone;
Restore) goes along with its like, what changes it (Delete, Expand) with nothing. That is the table of OperationLocks
made stricter: it lets a snapshot of a volume begin while the volume is being deleted or grown, and a clone begun while
it is deleted; between two controllers these wait for each other.

**A lock is not given back after a call that ended in doubt** (a timeout, a lost connection): its last write may still
be on its way to an OSD, and must not arrive when another controller has gone on. The lock is left to run out. A retry
at the same controller goes on at once, as its operations follow the earlier ones in order; a retry at another one is
ABORTED for at most a lease and then breaks the lock, which shuts the first client out.

A call that was suspended longer than its lease ends with ABORTED (LockLost) before its next write, or with UNAVAILABLE
when its client has been shut out; the driver then connects anew.
"""

import hashlib
import itertools
import json
import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

from csi_host.errors import CsiError, OperationPending
from csi_host.locks import Holder, MemoryLocks, Operation, VolumeLocks, current_holder, operation_pending, pending
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.failures import BackendTimeout, BackendUnavailable
from csi_host_rbd.ceph.lease_keeper import LeaseKeeper
from csi_host_rbd.ceph.leases import Lease, LockLost, relying_on
from csi_host_rbd.ceph.lock_class import LockType, Owner
from csi_host_rbd.ceph.locks import LeasedLock, LockHeld

log = logging.getLogger(__name__)

_OBJECT_PREFIX = "csi.lock."
_OPERATION = "operation"
# Of what another program says of itself; a gRPC message has room for a few thousand.
_SHOWN_CHARACTERS = 256
_TYPES = {
    Operation.CREATE: LockType.SHARED,
    Operation.CLONE: LockType.SHARED,
    Operation.RESTORE: LockType.SHARED,
    Operation.DELETE: LockType.EXCLUSIVE,
    Operation.EXPAND: LockType.EXCLUSIVE,
}


class SharedLocks(Protocol):
    """Locks against other controllers, taken once the pool is known, after those in memory."""

    def hold(self, pool: Pool, *keys: str, noun: str = VolumeLocks.noun) -> AbstractContextManager[None]:
        """Hold all ``keys`` for the length of the ``with``; raises OperationPending naming the holder of one.

        ``noun`` says whether they are a volume's or a snapshot's (``VolumeLocks.noun``, ``SnapshotLocks.noun``).
        """
        ...

    def hold_operation(self, pool: Pool, operation: Operation, identifier: str) -> AbstractContextManager[None]:
        """Hold ``operation`` on ``identifier`` for the length of the ``with``; raises OperationPending."""
        ...

    def close(self) -> None:
        """End what works in the background; connections are closed after it."""
        ...


class NoSharedLocks:
    """For one active controller: the locks in its memory are all there is."""

    def hold(self, pool: Pool, *keys: str, noun: str = VolumeLocks.noun) -> AbstractContextManager[None]:  # noqa: ARG002 (as the protocol has it)
        """Do nothing."""
        return nullcontext()

    def hold_operation(self, pool: Pool, operation: Operation, identifier: str) -> AbstractContextManager[None]:  # noqa: ARG002 (as the protocol has it)
        """Do nothing."""
        return nullcontext()

    def close(self) -> None:
        """Do nothing."""


@dataclass(frozen=True, kw_only=True)
class _Key:
    """What a lock is of, and what is done with it where others may do the same (``operation``)."""

    noun: str
    text: str
    operation: str = ""

    def object_name(self, instance_id: str) -> str:
        # Names and handles may hold any character, and be as long as an object's name may be.
        digest = hashlib.sha256(f"{self.noun}\0{self.text}".encode()).hexdigest()[:32]
        return f"{_OBJECT_PREFIX}{instance_id}.{digest}"

    def pending(self, holder: Holder, held_operation: str) -> OperationPending:
        if self.operation:
            return operation_pending(held_operation or self.operation, self.text, holder)
        return pending(self.noun, self.text, holder)

    def description(self, holder: Holder) -> str:
        """Return what other controllers, and people, are told; nobody compares the time but to show it."""
        return json.dumps(
            {
                "node": holder.node,
                "rpc": holder.rpc,
                "request": holder.request_id,
                "since": round(time.time(), 3),
                "of": f"{self.noun} {self.text}",
                "operation": self.operation,
            }
        )


class RadosLocks:
    """Locks in the pools themselves, for several active controllers of one ``instance_id``.

    ``node`` is who we are to others, ``lease_seconds`` how long after a holder's death its locks can be broken.
    """

    def __init__(self, *, instance_id: str, node: str, lease_seconds: float) -> None:
        self._instance_id = instance_id
        self._node = node
        self._lease_seconds = lease_seconds
        # One cookie for all exclusive locks: what this process left behind is found again by its next call.
        self._session = uuid.uuid4().hex[:16]
        self._numbers = itertools.count()
        self._ours = MemoryLocks()
        self._keeper = LeaseKeeper(lease_seconds=lease_seconds)

    @contextmanager
    def hold(self, pool: Pool, *keys: str, noun: str = VolumeLocks.noun) -> Iterator[None]:
        """Hold all ``keys`` for the length of the ``with``; raises OperationPending naming the holder of one."""
        with ExitStack() as stack:
            for text in sorted(set(keys)):
                stack.enter_context(self._exclusive(pool, _Key(noun=noun, text=text)))
            yield

    @contextmanager
    def hold_operation(self, pool: Pool, operation: Operation, identifier: str) -> Iterator[None]:
        """Hold ``operation`` on ``identifier`` for the length of the ``with``; raises OperationPending."""
        key = _Key(noun=_OPERATION, text=identifier, operation=operation)
        if _TYPES[operation] is LockType.EXCLUSIVE:
            with self._exclusive(pool, key):
                yield
            return
        with self._held(pool, key, LockType.SHARED, f"{self._session}.{next(self._numbers)}"):
            yield

    def close(self) -> None:
        """End the thread that renews leases."""
        self._keeper.close()

    @contextmanager
    def _exclusive(self, pool: Pool, key: _Key) -> Iterator[None]:
        # The cluster cannot tell two threads of this process from each other.
        name = pool.spec(key.object_name(self._instance_id))
        taken = self._ours.try_acquire([name], self._holder())
        if taken is not None:
            raise key.pending(taken[1], key.operation)
        try:
            with self._held(pool, key, LockType.EXCLUSIVE, self._session):
                yield
        finally:
            self._ours.release([name])

    @contextmanager
    def _held(self, pool: Pool, key: _Key, lock_type: LockType, cookie: str) -> Iterator[None]:
        lock = LeasedLock(
            pool=pool,
            object_name=key.object_name(self._instance_id),
            lock_type=lock_type,
            cookie=cookie,
            description=key.description(self._holder()),
            lease=Lease(what=f"{key.noun} {key.text}", seconds=self._lease_seconds),
        )
        self._acquire(lock, key)
        self._keeper.keep(lock)
        try:
            with relying_on(lock.lease):
                yield
        except BaseException as error:
            self._leave(lock, error)
            raise
        self._give_back(lock)

    def _holder(self) -> Holder:
        return replace(current_holder(), node=self._node)

    @staticmethod
    def _acquire(lock: LeasedLock, key: _Key) -> None:
        try:
            lock.acquire()
        except LockHeld as error:
            if not error.owners:
                raise
            holder, operation = _holder_of(error.owners[0])
            raise key.pending(holder, operation) from error

    def _give_back(self, lock: LeasedLock) -> None:
        """End a call that succeeded; it fails after all when the lock may have been another's meanwhile."""
        self._keeper.drop(lock)
        try:
            lock.release()
        except BackendTimeout as error:
            lock.lease.check("it could be given back")
            log.info(f"a lock is left to run out: {error}")

    def _leave(self, lock: LeasedLock, error: BaseException) -> None:
        """End a call that failed; raises LockLost or what else makes its answer worth nothing."""
        self._keeper.drop(lock)
        if _is_in_doubt(error):
            return
        try:
            lock.release()
        except (LockLost, BackendUnavailable) as reason:
            raise reason from error
        except CsiError as reason:
            log.info(f"a lock is left to run out: {reason}")


def _is_in_doubt(error: BaseException | None) -> bool:
    """Whether a write may still be on its way: an operation has timed out, or the cluster was lost."""
    while error is not None:
        if isinstance(error, (BackendTimeout, BackendUnavailable)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _holder_of(owner: Owner) -> tuple[Holder, str]:
    """Return who has a lock, by its own description, and the operation it does; what is not understood is left out."""
    try:
        told: Any = json.loads(owner.description)
        age = min(max(0.0, time.time() - float(told["since"])), time.monotonic())
        rpc, request_id, node, operation = (
            str(told[name])[:_SHOWN_CHARACTERS] for name in ("rpc", "request", "node", "operation")
        )
        return Holder(rpc=rpc, request_id=request_id, since=time.monotonic() - age, node=node), operation
    except (ValueError, TypeError, KeyError, OverflowError):
        return Holder(rpc=str(owner), request_id="-"), ""
