"""Ranges of bytes, and which of them an image's objects hold."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import lcm
from typing import NamedTuple

_MARKED = re.compile(b"\x01+")
# Object maps have four objects in a byte: a range of objects begins with a whole one.
_OBJECTS_A_BYTE = 4


class Extent(NamedTuple):
    """A range of bytes; ``length`` is never 0."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        """The offset of the first byte after it."""
        return self.offset + self.length


def merged(extents: Iterable[Extent]) -> Iterator[Extent]:
    """Yield extents that come in the order of their offsets, with those that touch or overlap made one."""
    last: Extent | None = None
    for extent in extents:
        if last is None:
            last = extent
        elif extent.offset <= last.end:
            last = Extent(last.offset, max(last.end, extent.end) - last.offset)
        else:
            yield last
            last = extent
    if last is not None:
        yield last


def clipped(extents: Iterable[Extent], start: int, end: int) -> Iterator[Extent]:
    """Yield what lies within ``start`` and ``end``."""
    for extent in extents:
        first, last = max(extent.offset, start), min(extent.end, end)
        if first < last:
            yield Extent(first, last - first)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How an image's bytes are spread over its objects; sizes are in bytes.

    Without striping an object holds one range. With it, ``stripe_count`` objects at a time (a period) take turns, a
    ``stripe_unit`` each.
    """

    object_bytes: int
    stripe_unit_bytes: int
    stripe_count: int

    @property
    def period_bytes(self) -> int:
        """How many bytes in a row a set of objects holds."""
        return self.object_bytes * self.stripe_count

    def objects_of(self, start: int, end: int) -> range:
        """Return the objects that hold these bytes: whole periods, beginning at a byte of the object map."""
        first = start // self.period_bytes * self.stripe_count
        aligned = lcm(self.stripe_count, _OBJECTS_A_BYTE)
        return range(first // aligned * aligned, -(-end // self.period_bytes) * self.stripe_count)

    def extents_of(self, first_object: int, marks: bytes) -> Iterator[Extent]:
        """Yield the bytes of the objects whose mark is 1, in order; ``first_object`` begins a period."""
        if self.stripe_count == 1:
            for run in _MARKED.finditer(marks):
                offset = (first_object + run.start()) * self.object_bytes
                yield Extent(offset, (run.end() - run.start()) * self.object_bytes)
        else:
            yield from merged(self._stripes_of(first_object, marks))

    def _stripes_of(self, first_object: int, marks: bytes) -> Iterator[Extent]:
        unit = self.stripe_unit_bytes
        for start in range(0, len(marks), self.stripe_count):
            period = marks[start : start + self.stripe_count]
            if not any(period):
                continue
            begin = (first_object + start) // self.stripe_count * self.period_bytes
            if all(period):
                yield Extent(begin, self.period_bytes)
                continue
            for row in range(self.object_bytes // unit):
                for run in _MARKED.finditer(period):
                    offset = begin + (row * self.stripe_count + run.start()) * unit
                    yield Extent(offset, (run.end() - run.start()) * unit)
