"""What a person gets to see."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TextIO

import click

_NAME_COLUMNS = 26


class Screen:
    """Writes short aligned lines; in colour on a terminal only, with plain marks where there is no Unicode."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_terminal = stream.isatty()
        is_unicode = "utf" in (stream.encoding or "").lower()
        self._good, self._bad = ("✓", "✗") if is_unicode else ("ok", "FAILED")
        self._steps = 0

    def title(self, text: str) -> None:
        """Begin a section."""
        self._write(f"\n{self._styled(text, bold=True)}\n\n")

    def fact(self, name: str, text: str) -> None:
        """Say something worth knowing."""
        self._write(f"   {name:<{_NAME_COLUMNS}} {text}\n")

    def line(self, text: str = "") -> None:
        """Write a line as it is."""
        self._write(f"{text}\n")

    def command(self, text: str) -> None:
        """Show what to type."""
        self._write(f"{self._styled(text, fg='cyan')}\n")

    @contextmanager
    def waiting(self, name: str, text: str) -> Iterator[None]:
        """Announce something slow and, when it is over, how it went and how long it took."""
        self._write(f"   {name:<{_NAME_COLUMNS}} {text} ... ")
        began = monotonic()
        try:
            yield
        except BaseException:
            self._write(f"{self._mark(False)}\n")
            raise
        self._write(f"{self._mark(True)} {monotonic() - began:.1f} s\n")

    def step(self, name: str, means: str, milliseconds: float, *, is_good: bool, command: str = "") -> None:
        """Show one step of the walk, and below it the command that repeats it."""
        self._steps += 1
        took = f"{milliseconds:7.1f} ms"
        columns = max(30, min(shutil.get_terminal_size((120, 25)).columns, 140) - 7 - _NAME_COLUMNS - 11)
        self._write(f"{self._steps:>3} {self._mark(is_good)} {name:<{_NAME_COLUMNS}} {means:<{columns}} {took}\n")
        if command:
            self._write(f"{self._styled(f'      $ {command}', dim=True)}\n")

    def trouble(self, text: str) -> None:
        """Say what went wrong."""
        self._write(f"{self._styled(text, fg='red')}\n")

    def _mark(self, is_good: bool) -> str:
        return self._styled(self._good, fg="green") if is_good else self._styled(self._bad, fg="red", bold=True)

    def _styled(self, text: str, *, fg: str | None = None, bold: bool | None = None, dim: bool | None = None) -> str:
        return click.style(text, fg=fg, bold=bold, dim=dim) if self._is_terminal else text

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()
