"""Ten thousand volumes at once: made, listed page by page, deleted, and nothing left of them."""

from collections.abc import Iterator, Sequence

from .place import Place
from .reports import MIB, Say, Verdict, Volumes, growth

_ALLOWED_GROWTH = 0.10
_BATCH = 1000
_PAGE = 500
_SHOWN = 10


def many_report(place: Place, say: Say, *, count: int, callers: int) -> list[Verdict]:
    """Make, list and delete ``count`` volumes; raises CallsFailedError for any answer but OK and ABORTED."""
    volumes = Volumes(place=place, say=say, callers=callers)
    volumes.delete(volumes.create(callers))
    place.settle()
    before = place.objects()
    handles: list[str] = []
    sizes: list[int] = []
    for begin in range(0, count, _BATCH):
        handles += volumes.create(min(_BATCH, count - begin))
        sizes.append(volumes.resident_bytes())
    listed = _listed(place, say, handles)
    sizes.append(volumes.resident_bytes())
    for begin in range(0, count, _BATCH):
        volumes.delete(handles[begin : begin + _BATCH])
        sizes.append(volumes.resident_bytes())
        # The manager looks through all tasks that wait for every one that is added: with thousands of them, the calls
        # would be measured waiting for that.
        say(f"{'':<7} the manager had emptied the trash {place.settle():.0f} s later")
    return [
        Verdict(holds=True, words=f"{count} volumes made and deleted by {callers} callers, no error but ABORTED "
                f"({volumes.aborted} times)"),
        listed,
        _flat(sizes),
        _nothing_left(before, place.objects()),
    ]  # fmt: skip


def _listed(place: Place, say: Say, handles: Sequence[str]) -> Verdict:
    if "LIST_VOLUMES" not in place.capabilities():
        say("ListVolumes is NOT SERVED by this driver: nothing was listed")
        return Verdict(holds=None, words="ListVolumes is not served: nothing was listed")
    pages = list(_pages(place, say))
    found = [handle for page in pages for handle in page]
    return Verdict(
        holds=sorted(found) == sorted(handles) and all(len(page) <= _PAGE for page in pages),
        words=f"{len(found)} volumes in {len(pages)} pages of at most {_PAGE}, each of the {len(handles)} once",
    )


def _pages(place: Place, say: Say) -> Iterator[list[str]]:
    token, slowest = "", 0.0
    while True:
        called = place.rpc("list", [[_PAGE, token]])
        ((page, token),) = called.answers
        slowest = max(slowest, called.seconds[0])
        yield page
        if not token:
            say(f"list    the slowest page took {slowest * 1000:.0f} ms")
            return


def _flat(sizes: Sequence[int]) -> Verdict:
    grown = growth(sizes[0], max(sizes))
    return Verdict(
        holds=grown <= _ALLOWED_GROWTH,
        words=f"resident {sizes[0] / MIB:.1f} MiB after the first batch, {max(sizes) / MIB:.1f} MiB at the most after "
        f"a later one, {sizes[-1] / MIB:.1f} MiB at the end: {grown:+.1%}, at most {_ALLOWED_GROWTH:.0%} allowed",
    )


def _nothing_left(before: set[str], after: set[str]) -> Verdict:
    left = sorted(after - before)
    shown = "".join(f"\n    {name}" for name in left[:_SHOWN])
    return Verdict(holds=not left, words=f"{len(left)} objects and keys left in the pool{shown}")
