"""Volume statistics that come within their time, whatever the mount does."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from csi_host.errors import Unavailable
from csi_host.node.stats import VolumeStats


class _Question:
    """One path being asked on a thread of its own."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.is_answered = threading.Event()
        self.answer: VolumeStats | None = None
        self.failure: Exception | None = None

    def age_seconds(self) -> float:
        return time.monotonic() - self.started

    def take(self) -> VolumeStats:
        if self.failure is not None:
            raise self.failure
        if self.answer is None:
            raise Unavailable("the volume's statistics were lost; ask again")
        return self.answer


class GuardedStats:
    """Asks ``answer`` on a helper thread and answers within ``budget_seconds`` in any case.

    A path that does not answer is reported abnormal, and keeps its one thread: nobody else is sent into the same
    hole, later callers hear at once since when it has been silent. When the thread comes back the path is asked
    anew. At most ``threads_at_most`` paths are waited for at a time. What ``answer`` raises is raised.
    """

    def __init__(
        self, answer: Callable[[Path], VolumeStats], budget_seconds: float, *, threads_at_most: int = 128
    ) -> None:
        self._answer = answer
        self._budget_seconds = budget_seconds
        self._threads_at_most = threads_at_most
        self._lock = threading.Lock()
        self._open: dict[Path, _Question] = {}

    def __call__(self, path: Path) -> VolumeStats:
        """Return what ``answer`` says of ``path``, or an abnormal condition."""
        with self._lock:
            question = self._open.get(path)
            if question is None:
                if len(self._open) >= self._threads_at_most:
                    return _silent(f"{len(self._open)} other volumes are being asked and do not answer")
                question = self._ask(path)
        # A caller that finds the path being asked waits for the rest of its time, not for a time of its own.
        if question.is_answered.wait(max(0.0, self._budget_seconds - question.age_seconds())):
            return question.take()
        return _silent(f"{os.fspath(path)} has not answered for {question.age_seconds():.0f} s")

    def _ask(self, path: Path) -> _Question:
        question = _Question()
        # A daemon: a thread in a dead mount cannot be ended and must not keep the process alive.
        thread = threading.Thread(target=self._run, args=(path, question), name=f"stats {path}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise Unavailable(f"no thread can be started: {error}") from error
        self._open[path] = question
        return question

    def _run(self, path: Path, question: _Question) -> None:
        try:
            question.answer = self._answer(path)
        except Exception as error:  # noqa: BLE001 - carried to the caller, which raises it
            question.failure = error
        finally:
            with self._lock:
                del self._open[path]
            question.is_answered.set()


def _silent(why: str) -> VolumeStats:
    return VolumeStats(abnormal=True, message=f"the volume's condition is unknown: {why}")
