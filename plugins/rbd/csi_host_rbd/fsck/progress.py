"""Telling how far a long reading is."""

from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


class Progress(Protocol):
    """Hears how far the scan is."""

    def over(self, label: str, pages: Iterator[T], size: Callable[[T], int], total: int | None) -> Iterator[T]:
        """Pass the pages on; ``size`` is how much of ``total`` one is, None when that is not known."""
        ...
