"""The RPC that the current thread is serving: who it is and how long it may take."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from csi_host.errors import DeadlineExceeded


@dataclass(frozen=True, kw_only=True)
class Request:
    """One RPC being served.

    ``rpc`` is the method's short name (``CreateVolume``), ``deadline`` a ``time.monotonic()`` value in seconds or
    None when the caller set none.
    """

    rpc: str
    request_id: str
    deadline: float | None = None
    started: float = field(default_factory=time.monotonic)

    def age_seconds(self) -> float:
        """Seconds since the call came in."""
        return time.monotonic() - self.started


_current: ContextVar[Request | None] = ContextVar("csi_host_request", default=None)


def current_request() -> Request | None:
    """Return the RPC this thread serves; None outside of one (background work, a command line)."""
    return _current.get()


@contextmanager
def serving(request: Request) -> Iterator[Request]:
    """Make ``request`` the current one for the length of the ``with``."""
    token = _current.set(request)
    try:
        yield request
    finally:
        _current.reset(token)


def remaining_seconds() -> float | None:
    """Seconds until the current caller gives up (never negative); None when there is no caller or no deadline."""
    request = _current.get()
    if request is None or request.deadline is None:
        return None
    return max(0.0, request.deadline - time.monotonic())


def seconds_for(step: str, *, at_most: float) -> float:
    """Return how long ``step`` may take: ``at_most`` seconds, less when the caller's deadline is nearer.

    Raises DeadlineExceeded when the deadline has passed: a step that cannot finish is not begun.
    """
    left = remaining_seconds()
    if left is None:
        return at_most
    if left <= 0:
        raise DeadlineExceeded(f"the caller's deadline passed before {step}")
    return min(at_most, left)
