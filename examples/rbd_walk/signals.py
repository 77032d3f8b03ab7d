"""Ctrl-C and its like: an exception once, and no second one while things are put in order."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """Somebody wants us to end; no ``except Exception`` on the way may swallow it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.exit_code = 128 + number


class Signals:
    """Turns the first signal into Interrupted, while the ``with`` lasts; later ones only call ``remind``."""

    def __init__(self, remind: Callable[[], None]) -> None:
        self._remind = remind
        self._is_open = True

    def __enter__(self) -> Self:
        """Begin to listen."""
        self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        """Leave everything as it was found."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep signals waiting within the ``with``: what is made there is made and known, or not at all."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

    def close(self) -> None:
        """From here on nothing is interrupted any more."""
        self._is_open = False

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._is_open:
            self._is_open = False
            raise Interrupted(number)
        self._remind()
