"""Whether the driver's memory is flat: its resident size early on and after many creations and deletions.

It is looked at when the driver rests: threads that wait for more work end after ten seconds, and what a burst of calls
used is given back within five more.
"""

import time

from .place import Place
from .reports import MIB, Say, Verdict, Volumes, growth

_ALLOWED_GROWTH = 0.10
_ALLOWED_BYTES = 100 * 1000**2
_REST_SECONDS = 20.0
_BATCH = 250


def memory_report(place: Place, say: Say, *, first: int, last: int, callers: int) -> list[Verdict]:
    """Make and delete ``last`` volumes, and compare the resident size with that after the ``first`` of them."""
    volumes = Volumes(place=place, say=say, callers=callers)
    _live(volumes, first)
    early = _at_rest(volumes)
    _live(volumes, last - first)
    late = _at_rest(volumes)
    grown = growth(early, late)
    return [
        Verdict(
            holds=abs(grown) <= _ALLOWED_GROWTH,
            words=f"resident {early / MIB:.1f} MiB after {first} creations and deletions, {late / MIB:.1f} MiB after "
            f"{last}: {grown:+.1%}, at most {_ALLOWED_GROWTH:.0%} allowed",
        ),
        Verdict(
            holds=max(early, late) < _ALLOWED_BYTES,
            words=f"resident {max(early, late) / MIB:.1f} MiB, less than {_ALLOWED_BYTES / MIB:.1f} allowed",
        ),
    ]


def _at_rest(volumes: Volumes) -> int:
    time.sleep(_REST_SECONDS)
    return volumes.resident_bytes()


def _live(volumes: Volumes, count: int) -> None:
    for begin in range(0, count, _BATCH):
        volumes.delete(volumes.create(min(_BATCH, count - begin)))
        # The manager is not let fall behind: a long trash would slow down the cluster, not the driver.
        volumes.place.settle()
