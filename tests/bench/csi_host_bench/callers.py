"""Many callers of one kind of call, each beginning its next call when the last one has ended."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any


class CallError(Exception):
    """A call that did not succeed; ``code`` is what the answer was, in gRPC's or librbd's words."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code


@dataclass(frozen=True, kw_only=True)
class Called:
    """What became of one batch of calls.

    ``answers`` are in the order of the items, None for a call that failed; ``failed`` are the positions of those,
    ``codes`` and ``errors`` say how, in the same order. ``wall_seconds`` is from the first call's beginning to the last
    one's end.
    """

    answers: list[Any]
    seconds: list[float]
    wall_seconds: float
    cpu_seconds: float
    failed: list[int]
    codes: list[str]
    errors: list[str]


def call_all(function: Callable[[Any], Any], items: Sequence[Any], callers: int) -> Called:
    """Call ``function`` for every item, ``callers`` of them at a time."""
    run = _Run(function, items)
    threads = [threading.Thread(target=run.work) for _ in range(min(callers, len(items)))]
    with _timed() as took:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    wall_seconds, cpu_seconds = took
    return Called(
        answers=run.answers,
        seconds=run.seconds,
        wall_seconds=wall_seconds,
        cpu_seconds=cpu_seconds,
        failed=list(run.errors),
        codes=[error.code for error in run.errors.values()],
        errors=[str(error) for error in run.errors.values()],
    )


class _Run:
    def __init__(self, function: Callable[[Any], Any], items: Sequence[Any]) -> None:
        self.answers: list[Any] = [None] * len(items)
        self.seconds: list[float] = [0.0] * len(items)
        self.errors: dict[int, CallError] = {}
        self._function = function
        self._items = items
        self._positions = count()

    def work(self) -> None:
        while (position := next(self._positions)) < len(self._items):
            began = time.perf_counter()
            try:
                self.answers[position] = self._function(self._items[position])
            except CallError as error:
                self.errors[position] = error
            self.seconds[position] = time.perf_counter() - began


@contextmanager
def _timed() -> Iterator[list[float]]:
    took: list[float] = []
    began, cpu = time.perf_counter(), time.process_time()
    yield took
    took += [time.perf_counter() - began, time.process_time() - cpu]
