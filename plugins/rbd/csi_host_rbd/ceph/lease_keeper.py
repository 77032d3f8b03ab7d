"""The thread that renews the leases of the locks being held."""

import threading

from csi_host_rbd.ceph.locks import LeasedLock

# How often a lease is looked at while it lasts: a renewal is due after a third of it.
_LOOKS_A_LEASE = 12
_LAST_ANSWER_SECONDS = 2.0


class LeaseKeeper:
    """Renews the leases of held locks, which last for ``lease_seconds``, until they are given back.

    It waits for no answer, so that an object whose OSD hangs keeps no other from being renewed.
    """

    def __init__(self, *, lease_seconds: float) -> None:
        self._pause = lease_seconds / _LOOKS_A_LEASE
        self._changed = threading.Condition()
        self._locks: set[LeasedLock] = set()
        self._is_closing = False
        self._thread: threading.Thread | None = None

    def keep(self, lock: LeasedLock) -> None:
        """Renew this lock from now on; the first one starts the thread."""
        with self._changed:
            self._locks.add(lock)
            if self._thread is None and not self._is_closing:
                self._thread = threading.Thread(target=self._work, name="csi-host-leases", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def drop(self, lock: LeasedLock) -> None:
        """Renew this lock no more."""
        with self._changed:
            self._locks.discard(lock)
        lock.stop_renewing()
        # A connection should not be closed while an answer is on its way; one that hangs is not waited for.
        lock.wait_for_answer(_LAST_ANSWER_SECONDS)

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(_LAST_ANSWER_SECONDS)

    def _work(self) -> None:
        while self._wait():
            for lock in self._due():
                lock.renew()

    def _wait(self) -> bool:
        """Wait until it is time to look at the leases; false when there is nothing more to come."""
        with self._changed:
            self._changed.wait_for(lambda: self._locks or self._is_closing)
            self._changed.wait_for(lambda: self._is_closing, self._pause)
            return not self._is_closing

    def _due(self) -> list[LeasedLock]:
        with self._changed:
            return [lock for lock in self._locks if lock.lease.is_due]
