"""Killing csi-host at every step of something, without listing the steps."""

import inspect
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any


class Killed(BaseException):
    """csi-host was killed: nothing of it runs after this, no handling of errors either."""


@contextmanager
def killed_at(step: int, places: Sequence[Path]) -> Iterator[list[int]]:
    """Kill what this thread does at the ``step``-th time that it enters a function of the code at ``places``.

    The steps are those that the interpreter sees, so that new code is covered without being listed. Yields a list that
    is not empty once it has happened. What a dying process does not do must be tolerated by the test: sockets are
    closed by the garbage collector in the kernel's stead, which warns of it.
    """
    prefixes = tuple(str(place) for place in places)
    steps = 0
    happened: list[int] = []

    def watch(frame: FrameType, event: str, _argument: Any) -> None:
        nonlocal steps
        # A generator that is killed on entering does not close what it holds, which a dying process does.
        is_step = event == "call" and not frame.f_code.co_flags & inspect.CO_GENERATOR
        if is_step and frame.f_code.co_filename.startswith(prefixes):
            steps += 1
            if steps == step:
                happened.append(step)
                raise Killed

    sys.setprofile(watch)
    try:
        with suppress(Killed):
            yield happened
    finally:
        sys.setprofile(None)
