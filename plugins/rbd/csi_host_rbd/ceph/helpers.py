"""Helper threads for the calls of the bindings that have no timeout of their own.

``rados_osd_op_timeout`` bounds every single OSD operation, but not registering a watch, waiting for another
client's exclusive lock, or a manager that does not answer: the binding ignores its ``timeout`` there. Such a call
runs on a thread of its own and the caller stops waiting; the thread ends when the call does. How many may hang is
bounded, so a stuck manager costs a few threads and not one per retry.
"""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from csi_host_rbd.ceph.failures import BackendTimeout, BackendUnavailable

T = TypeVar("T")


class HelperThreads:
    """The helper threads of one purpose on one connection; at most ``limit`` of them may hang at once."""

    def __init__(self, *, purpose: str, limit: int) -> None:
        self._purpose = purpose
        self._limit = limit
        self._guard = threading.Lock()
        self._running = 0
        self._hanging: dict[object, _Hanging] = {}

    @property
    def running(self) -> int:
        """How many threads there are."""
        with self._guard:
            return self._running

    @property
    def hanging(self) -> int:
        """How many of them run a call that nobody waits for any more."""
        with self._guard:
            return len(self._hanging)

    def start(self, target: str = "") -> "Helper":
        """Start a thread; raises BackendUnavailable when too many hang, or one hangs in a call on this ``target``.

        Nothing is done to a target beside a call that may still be changing it.
        """
        with self._guard:
            for hanging in self._hanging.values():
                if target and hanging.target == target:
                    raise BackendUnavailable(
                        f"an earlier call {hanging}; nothing else is done to {target} before it ends"
                    )
            if len(self._hanging) >= self._limit:
                oldest = next(iter(self._hanging.values()))
                raise BackendUnavailable(
                    f"{len(self._hanging)} calls of the {self._purpose} hang; the oldest: {oldest}"
                )
            self._running += 1
        return Helper(self, target)

    def call(self, step: str, function: Callable[[], T], *, timeout: float, target: str = "") -> T:
        """Return ``function()``, waiting ``timeout`` seconds at the most; raises BackendTimeout."""
        helper = self.start(target)
        try:
            return helper.call(step, function, timeout=timeout)
        finally:
            helper.end()

    def _abandon(self, helper: "Helper", step: str) -> None:
        with self._guard:
            self._hanging[helper] = _Hanging(step=step, target=helper.target, since=time.monotonic())

    def _forget(self, helper: "Helper") -> None:
        with self._guard:
            self._hanging.pop(helper, None)
            self._running -= 1


@dataclass(frozen=True, kw_only=True)
class _Hanging:
    """A call that nobody waits for any more."""

    step: str
    target: str
    since: float

    def __str__(self) -> str:
        return f"({self.step}) still runs, {time.monotonic() - self.since:.0f} s after it was given up"


class _Call:
    """One call and its outcome."""

    def __init__(self, step: str, function: Callable[[], Any]) -> None:
        self.step = step
        self.function = function
        self.done = threading.Event()
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.result = self.function()
        except BaseException as error:  # noqa: BLE001 (it is raised again in the thread that waits)
            self.error = error
        finally:
            self.done.set()


class Helper:
    """One thread that runs calls in order; a call that is not waited for any more still runs to its end."""

    def __init__(self, owner: HelperThreads, target: str) -> None:
        self.target = target
        self._owner = owner
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._is_abandoned = False
        threading.Thread(target=self._work, name="csi-host-ceph", daemon=True).start()

    def call(self, step: str, function: Callable[[], T], *, timeout: float) -> T:
        """Return ``function()``, waiting ``timeout`` seconds at the most.

        Raises BackendTimeout, and for every later call as well: the thread still hangs in the first one.
        """
        if self._is_abandoned:
            raise BackendTimeout(f"{step}: an earlier step still hangs")
        call = _Call(step, function)
        self._wait(call, timeout)
        return call.result  # type: ignore[no-any-return]  # what function returned, which is a T

    def end(self, last: Callable[[], None] | None = None, *, step: str = "", timeout: float = 0.0) -> None:
        """End the thread, after ``last``; when an earlier call hangs nobody waits for it."""
        call = None if last is None else _Call(step, last)
        try:
            if call is not None and self._is_abandoned:
                self._calls.put(call)
            elif call is not None:
                self._wait(call, timeout)
        finally:
            self._calls.put(None)

    def _wait(self, call: _Call, seconds: float) -> None:
        self._calls.put(call)
        if not call.done.wait(seconds):
            self._is_abandoned = True
            self._owner._abandon(self, call.step)  # noqa: SLF001 (the two classes are one thing)
            raise BackendTimeout(f"{call.step}: Ceph did not answer within {seconds:.1f} s; it may still happen")
        if call.error is not None:
            raise call.error

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call.run()
        self._owner._forget(self)  # noqa: SLF001 (the two classes are one thing)
