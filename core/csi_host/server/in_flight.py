"""The calls being served now."""

import itertools
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from csi_host.request import Request


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call being served: its request, and the thread that serves it."""

    request: Request
    thread_id: int

    @property
    def is_past_deadline(self) -> bool:
        """Whether its caller has given up."""
        deadline = self.request.deadline
        return deadline is not None and deadline <= time.monotonic()

    def stack(self) -> str:
        """Return where its thread is now: frames only, as local variables may hold secrets."""
        return stack_of(self.thread_id)


class InFlightCalls:
    """The table of calls being served, oldest first."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        self._calls: dict[int, Call] = {}

    @contextmanager
    def tracked(self, request: Request) -> Iterator[None]:
        """Have the current thread's call in the table for the length of the ``with``."""
        number = next(self._numbers)
        with self._changed:
            self._calls[number] = Call(request=request, thread_id=threading.get_ident())
        try:
            yield
        finally:
            with self._changed:
                del self._calls[number]
                self._changed.notify_all()

    def calls(self) -> list[Call]:
        """Return the calls being served now."""
        with self._changed:
            return list(self._calls.values())

    def wait_until_none(self, deadline: float) -> list[Call]:
        """Wait until no call is left or ``deadline`` (``time.monotonic()``) has come; return the calls that are."""
        with self._changed:
            self._changed.wait_for(lambda: not self._calls, max(0.0, deadline - time.monotonic()))
            return list(self._calls.values())


def stack_of(thread_id: int) -> str:
    """Return the Python stack of a thread, innermost frame last; empty when the thread has ended."""
    frame = sys._current_frames().get(thread_id)  # noqa: SLF001 - documented for debugging, there is no public name
    return "" if frame is None else "".join(traceback.format_stack(frame))
