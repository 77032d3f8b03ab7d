"""Thread pools whose threads never keep the process alive."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


class DaemonPool(ThreadPoolExecutor):
    """A pool of at most ``size`` daemon threads, each started when it is first needed.

    The standard pool's threads are joined when the interpreter exits, so that one stuck call would keep a stopped
    process for ever. It is a ThreadPoolExecutor because gRPC accepts nothing else as a handler's own pool.
    """

    def __init__(self, size: int, name: str) -> None:
        super().__init__(max_workers=size)
        self._size = size
        self._name = name
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._guard = threading.Lock()
        self._started = 0
        self._is_open = True

    @property
    def is_open(self) -> bool:
        """Whether the pool takes work."""
        return self._is_open

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
            self._tasks.put(task)
            if not self._idle.acquire(blocking=False) and self._started < self._size:
                self._started += 1
                thread = threading.Thread(target=self._work, name=f"{self._name}-{self._started}", daemon=True)
                thread.start()
        return future

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = False) -> None:  # noqa: ARG002 - the base's signature
        """Take no more work; threads end after what is queued. Nobody waits for them: one may be stuck for ever."""
        with self._guard:
            if not self._is_open:
                return
            self._is_open = False
            for _ in range(self._started):
                self._tasks.put(None)

    def _work(self) -> None:
        while True:
            try:
                task = self._tasks.get_nowait()
            except Empty:
                self._idle.release()
                task = self._tasks.get()
            if task is None:
                return
            task()
            del task
