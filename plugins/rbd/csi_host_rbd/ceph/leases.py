"""Until when a lock that another controller can break is certainly ours, and the check of it before each write.

A holder renews its lease; one that cannot, because it was suspended, swapped out or cut off, loses it. Two things keep
such a holder from writing beside its successor:

* it looks at its own lease before each durable step, by a clock that also runs while the machine sleeps, and stops a
  margin before the lease ends;
* whoever breaks the lock has the cluster refuse the holder's client first, which is what stops a write that was on its
  way already, and a holder whose clock stood still with it (a suspended virtual machine).

The second one alone is what safety rests on: no two clocks are ever compared. The first one makes the call end with
ABORTED before anything is sent.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock

from csi_host.errors import Aborted

# A lease is renewed when a third of it has passed, and not relied on in its last sixth.
_RENEW_AFTER = 1 / 3
_RELY_UNTIL = 5 / 6


class LockLost(Aborted):
    """A lock of this call was not renewed in time: another controller may be at the volume by now; ask again."""


def boot_seconds() -> float:
    """Return the seconds since the machine started; they go on while it sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Lease:
    """How long a lock is certainly ours: ``seconds`` from when the request was sent that renewed it last.

    ``what`` names the lock in errors. Safe for many threads.
    """

    def __init__(self, *, what: str, seconds: float, now: Callable[[], float] = boot_seconds) -> None:
        self.seconds = seconds
        self.now = now
        self._what = what
        self._guard = Lock()
        self._renewed: float | None = None
        self._loss = ""

    def renew(self, sent: float) -> None:
        """Count from ``sent``, when the request that has just succeeded was sent."""
        with self._guard:
            self._renewed = sent

    def lose(self, why: str) -> None:
        """Note that the lock is another's: nothing makes the lease fresh again."""
        with self._guard:
            self._loss = self._loss or why

    @property
    def is_due(self) -> bool:
        """Whether it is time to renew it."""
        age = self._age()
        return age is not None and not self._loss and age >= self.seconds * _RENEW_AFTER

    @property
    def is_fresh(self) -> bool:
        """Whether the lock is certainly ours now."""
        age = self._age()
        return age is not None and not self._loss and age < self.seconds * _RELY_UNTIL

    def check(self, step: str) -> None:
        """Raise LockLost unless the lock is certainly ours; ``step`` is what is not done then."""
        if self.is_fresh:
            return
        age = self._age()
        why = self._loss or f"it was not renewed for {0.0 if age is None else age:.1f} of its {self.seconds:g} s"
        raise LockLost(f"the lock of {self._what} was lost before {step}: {why}")

    def _age(self) -> float | None:
        with self._guard:
            return None if self._renewed is None else self.now() - self._renewed


_held: ContextVar[tuple[Lease, ...]] = ContextVar("csi_host_rbd_leases", default=())


@contextmanager
def relying_on(lease: Lease) -> Iterator[None]:
    """Make every durable step of this thread within the ``with`` depend on ``lease``."""
    token = _held.set((*_held.get(), lease))
    try:
        yield
    finally:
        _held.reset(token)


class LeaseCheck:
    """Refuses a durable step when a lock of the call may have been lost (an observer of writes)."""

    def before(self, step: str) -> None:
        """Raise LockLost unless all leases that the call relies on are fresh."""
        for lease in _held.get():
            lease.check(step)

    def after(self, step: str) -> None:
        """Nothing is to be done."""
