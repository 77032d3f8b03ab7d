"""Thread pools whose threads never keep the process alive."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")

_Task = Callable[[], None]


class DaemonPool(ThreadPoolExecutor):
    """A pool of at most ``size`` daemon threads, each started when it is first needed.

    The standard pool's threads are joined when the interpreter exits, so that one stuck call would keep a stopped
    process for ever; and it hands its work round, so that a few callers start and keep warm all of its threads (each
    costs some 200 KB once it has been in librbd). Here the thread that became free last is the next to work. It is a
    ThreadPoolExecutor because gRPC accepts nothing else as a handler's own pool.
    """

    def __init__(self, size: int, name: str) -> None:
        super().__init__(max_workers=size)
        self._size = size
        self._name = name
        self._guard = threading.Lock()
        # Those of the threads that wait for work, the latest last.
        self._inboxes: list[SimpleQueue[_Task | None]] = []
        # What waits for a thread when all of them are at work.
        self._waiting: deque[_Task] = deque()
        self._started = 0
        self._is_open = True

    @property
    def is_open(self) -> bool:
        """Whether the pool takes work."""
        return self._is_open

    @property
    def idle(self) -> int:
        """How many of its threads wait for work."""
        with self._guard:
            return len(self._inboxes)

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        """Have ``fn`` run by the next thread that is free."""
        future: Future[_T] = Future()

        def task() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:  # noqa: BLE001 - it is handed on to whoever asks the future
                future.set_exception(error)
            else:
                future.set_result(result)

        with self._guard:
            if not self._is_open:
                raise RuntimeError(f"the {self._name} pool is shut down")
            if self._inboxes:
                self._inboxes.pop().put(task)
            elif self._started == self._size or not self._has_started(task):
                self._waiting.append(task)
        return future

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = False) -> None:  # noqa: ARG002 - the base's signature
        """Take no more work; threads end after what is queued. Nobody waits for them: one may be stuck for ever."""
        with self._guard:
            self._is_open = False
            while self._inboxes:
                self._inboxes.pop().put(None)

    def _has_started(self, first: _Task) -> bool:
        """Start one more thread; where the system has none left, those that there are have to do."""
        name = f"{self._name}-{self._started + 1}"
        try:
            threading.Thread(target=self._work, args=(first,), name=name, daemon=True).start()
        except RuntimeError:
            if self._started == 0:
                raise
            return False
        self._started += 1
        return True

    def _work(self, first: _Task) -> None:
        inbox: SimpleQueue[_Task | None] = SimpleQueue()
        task: _Task | None = first
        del first
        while task is not None:
            task()
            # It holds the call's messages, which must not live on while this waits.
            del task
            task = self._next(inbox)

    def _next(self, inbox: "SimpleQueue[_Task | None]") -> _Task | None:
        with self._guard:
            if self._waiting:
                return self._waiting.popleft()
            if not self._is_open:
                return None
            self._inboxes.append(inbox)
        return inbox.get()
