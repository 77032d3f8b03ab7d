"""Helper threads for the calls of the bindings that have no timeout of their own.

``rados_osd_op_timeout`` bounds every single OSD operation, but not registering a watch, waiting for another
client's exclusive lock, or a manager that does not answer: the binding ignores its ``timeout`` there. Such a call
runs on a helper thread and the caller stops waiting; the thread is free again when the call ends. How many may hang
is bounded, so a stuck manager costs a few threads and not one per retry.

A thread that is free waits a while for the next call: librados and librbd pay for every new thread (its memory arena,
its thread-local state), about 0.4 ms of processor time a call.
"""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from csi_host_rbd.ceph.failures import BackendTimeout, BackendUnavailable

T = TypeVar("T")

_IDLE_SECONDS = 10.0


class FreeThreads:
    """Threads that wait for work, for all purposes of a connection; one ends that has waited for ``idle_seconds``."""

    def __init__(self, *, idle_seconds: float = _IDLE_SECONDS) -> None:
        self.idle_seconds = idle_seconds
        self._guard = threading.Lock()
        self._threads: list[_Thread] = []

    @property
    def count(self) -> int:
        """How many there are."""
        with self._guard:
            return len(self._threads)

    def take(self) -> "_Thread":
        """Return the one that became free last, or a new one: the others get old and end."""
        with self._guard:
            if self._threads:
                return self._threads.pop()
        return _Thread(self)

    def give_back(self, thread: "_Thread") -> None:
        """Keep a thread for the next call."""
        with self._guard:
            self._threads.append(thread)

    def retire(self, thread: "_Thread") -> bool:
        """Whether a thread that has waited for too long may end: not when it has just been taken."""
        with self._guard:
            if thread not in self._threads:
                return False
            self._threads.remove(thread)
            return True


class HelperThreads:
    """The helper threads of one purpose on one connection; at most ``limit`` of them may hang at once."""

    def __init__(self, *, purpose: str, limit: int, free: FreeThreads | None = None) -> None:
        self._purpose = purpose
        self._limit = limit
        self._free = free or FreeThreads()
        self._guard = threading.Lock()
        self._running = 0
        self._hanging: dict[object, _Hanging] = {}

    @property
    def running(self) -> int:
        """How many threads are at work, or wait for the next call of somebody who has not ended yet."""
        with self._guard:
            return self._running

    @property
    def hanging(self) -> int:
        """How many of them run a call that nobody waits for any more."""
        with self._guard:
            return len(self._hanging)

    def start(self, target: str = "") -> "Helper":
        """Take a thread; raises BackendUnavailable when too many hang, or one hangs in a call on this ``target``.

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
        try:
            thread = self._free.take()
        except RuntimeError as error:
            with self._guard:
                self._running -= 1
            raise BackendUnavailable(f"no thread can be started for a call of the {self._purpose}: {error}") from error
        return Helper(self, target, thread)

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

    def _ended(self, helper: "Helper") -> None:
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
        self._function = function
        # Held until the call has ended: a lock is all that waiting with a timeout takes.
        self._running = threading.Lock()
        self._running.acquire()
        self._result: Any = None
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._result = self._function()
        except BaseException as error:  # noqa: BLE001 (it is raised again in the thread that waits)
            self._error = error
        finally:
            self._running.release()

    def wait(self, seconds: float) -> bool:
        """Whether it has ended within so many seconds."""
        return self._running.acquire(timeout=seconds)

    def outcome(self) -> Any:
        """Return its result, or raise its error; once it has ended."""
        if self._error is not None:
            raise self._error
        return self._result


class _End:
    """What is put behind a helper's last call; ``note`` takes down that it has ended."""

    def __init__(self, note: Callable[[], None]) -> None:
        self.note = note


class _Thread:
    """A thread that runs what is put to it, in order; free for the next helper after an ``_End``."""

    def __init__(self, free: FreeThreads) -> None:
        self._free = free
        self._tasks: queue.SimpleQueue[_Call | _End] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="csi-host-ceph", daemon=True).start()

    def put(self, task: _Call | _End) -> None:
        self._tasks.put(task)

    def _work(self) -> None:
        while True:
            try:
                task = self._tasks.get(timeout=self._free.idle_seconds)
            except queue.Empty:
                if self._free.retire(self):
                    return
                continue
            if isinstance(task, _End):
                task.note()
                self._free.give_back(self)
            else:
                task.run()
            # Neither the call nor its outcome is kept alive while this waits.
            del task


class Helper:
    """A thread that runs calls in order; a call that is not waited for any more still runs to its end."""

    def __init__(self, owner: HelperThreads, target: str, thread: _Thread) -> None:
        self.target = target
        self._owner = owner
        self._thread = thread
        self._is_abandoned = False

    def call(self, step: str, function: Callable[[], T], *, timeout: float) -> T:
        """Return ``function()``, waiting ``timeout`` seconds at the most.

        Raises BackendTimeout, and for every later call as well: the thread still hangs in the first one.
        """
        if self._is_abandoned:
            raise BackendTimeout(f"{step}: an earlier step still hangs")
        return self._wait(_Call(step, function), timeout)  # type: ignore[no-any-return]  # what function returned

    def end(self, last: Callable[[], None] | None = None, *, step: str = "", timeout: float = 0.0) -> None:
        """Give the thread back, after ``last``; when an earlier call hangs nobody waits for it."""
        call = None if last is None else _Call(step, last)
        try:
            if call is not None and self._is_abandoned:
                self._thread.put(call)
            elif call is not None:
                self._wait(call, timeout)
        finally:
            self._thread.put(_End(lambda: self._owner._ended(self)))  # noqa: SLF001 (the two classes are one thing)

    def _wait(self, call: _Call, seconds: float) -> Any:
        self._thread.put(call)
        if not call.wait(seconds):
            self._is_abandoned = True
            self._owner._abandon(self, call.step)  # noqa: SLF001 (the two classes are one thing)
            raise BackendTimeout(f"{call.step}: Ceph did not answer within {seconds:.1f} s; it may still happen")
        return call.outcome()
