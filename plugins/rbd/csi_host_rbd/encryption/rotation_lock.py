"""The lock under which a volume's passphrase is changed: ceph-csi's own, so that the two drivers wait for each other.

An advisory lock of the OSD on an object named like the volume, which goes with the lock. It runs out by itself: who
dies keeps others out for three minutes. Who has it renews it before every step, and stops when a renewal comes too
late, as somebody else may have been at it: every step leaves a volume that opens, so stopping is always right.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from csi_host.errors import Aborted, CsiError
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.lock_class import LockTaken, LockType, lock, operate, unlock

_SECONDS = 180.0
# What a step may take longer than the lock lasts would be done without it.
_FRESH_SECONDS = 150.0


class RotationPending(Aborted):
    """Somebody else changes the passphrase of this volume."""


class RotationLock:
    """The lock of one volume, while it is held; ``now`` is a clock that goes on while the machine sleeps."""

    def __init__(
        self, pool: Pool, handle: str, *, now: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME)
    ) -> None:
        self._pool = pool
        self._handle = handle
        self._name = f"{handle}-mutexlock"
        self._cookie = f"{handle}-enc-key-rotate"
        self._now = now
        self._renewed = 0.0

    @contextmanager
    def held(self) -> Iterator["RotationLock"]:
        """Hold the lock for the length of the ``with``; raises RotationPending."""
        self._take()
        try:
            yield self
        finally:
            # It runs out by itself as well.
            with suppress(CsiError):
                operate(self._pool, self._handle, unlock(self._name, self._cookie), removes=True)

    def renew(self) -> None:
        """Have the lock for some more minutes; raises RotationPending when it may have been lost."""
        if self._now() - self._renewed > _FRESH_SECONDS:
            raise RotationPending(f"changing the passphrase of volume {self._handle} took too long; ask again")
        self._take()

    def _take(self) -> None:
        sent = self._now()
        wanted = lock(
            self._name, LockType.EXCLUSIVE, self._cookie, description="csi-host", seconds=_SECONDS, may_renew=True
        )
        try:
            operate(self._pool, self._handle, wanted)
        except LockTaken as reason:
            raise RotationPending(
                f"the passphrase of volume {self._handle} is being changed by somebody else, or was until at most "
                f"{_SECONDS:.0f} s ago; ask again"
            ) from reason
        self._renewed = sent
