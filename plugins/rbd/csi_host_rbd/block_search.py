"""Searching an image from an offset to its end, a window at a time, so that nothing depends on how big it is."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from csi_host.errors import OutOfRange
from csi_host_rbd.ceph.diff import Finder, ObjectMapsUnusable
from csi_host_rbd.ceph.extents import Extent
from csi_host_rbd.ceph.failures import ImageNotFound

log = logging.getLogger(__name__)

# Some four megabytes of Python's objects.
_EXTENTS_AT_ONCE = 32 * 1024

Check = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """What is found of a snapshot of ``size_bytes``, part by part: in order, and nothing twice.

    A part may be empty: the search has come further.
    """

    size_bytes: int
    parts: Iterator[Sequence[Extent]]


def search(finders: Sequence[Finder], *, start: int, size_bytes: int, check: Check) -> Blocks:
    """Search with the first of the finders, and with the next once the object maps cannot be used.

    ``check`` is called after what is handed out was found, and raises when it may be of another time. Raises OutOfRange
    when ``start`` lies beyond the end.
    """
    if not 0 <= start <= size_bytes:
        raise OutOfRange(f"starting_offset: expected at most {size_bytes}, the size of the volume, got {start}")
    return Blocks(size_bytes=size_bytes, parts=_parts(finders, start, size_bytes, check))


def _parts(finders: Sequence[Finder], start: int, end: int, check: Check) -> Iterator[Sequence[Extent]]:
    try:
        for window in _windows(finders, start, end):
            yield from _checked(window, check)
    except ImageNotFound:
        # A volume's image leaves the trash with the last of its snapshots.
        check()
        raise


def _windows(finders: Sequence[Finder], start: int, end: int) -> Iterator[Iterator[Extent]]:
    finder, *others = finders
    while start < end:
        stop = min(end, start + finder.window_bytes)
        try:
            found = iter(finder.extents(start, stop))
        except ObjectMapsUnusable as reason:
            if not others:
                raise
            log.info(f"going on without object maps: {reason}")
            finder, *others = others
            continue
        yield found
        start = stop


def _checked(found: Iterator[Extent], check: Check) -> Iterator[Sequence[Extent]]:
    """Yield extents in parts, each after a check; at least one, be it empty, so that a search is seen to go on."""
    is_last = False
    while not is_last:
        part = list(islice(found, _EXTENTS_AT_ONCE))
        is_last = len(part) < _EXTENTS_AT_ONCE
        check()
        yield part
