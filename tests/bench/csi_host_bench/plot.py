"""The shares as bars, in an SVG file that needs nothing to be seen but a browser."""

from collections.abc import Iterator, Mapping, Sequence
from xml.sax.saxutils import escape

from .measuring import Result
from .tables import AIMS

_WIDTH, _LEFT, _TOP, _BOTTOM, _RIGHT = 1100, 430, 64, 40, 40
_BAR, _GAP, _GROUP_GAP = 16, 3, 16
# Told apart by people who do not see colours too: the numbers of callers stand at each bar.
_COLOURS = ("#8fb8de", "#3d7ebf", "#1f3f66")
_AIM_COLOUR = "#c0392b"


def plot(results: Sequence[Result], environment: Mapping[str, str]) -> str:
    """Return the picture: for each RPC a bar for each number of callers, as long as its share of librbd's rate."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(f"{result.rpc} / {result.floor}", []).append(result)
    body = list(_groups(groups))
    height = _TOP + sum(_height(group) for group in groups.values()) + _BOTTOM
    note = ", ".join(f"{name} {value}" for name, value in environment.items())
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" font-family="sans-serif">',
            '<rect width="100%" height="100%" fill="white"/>',
            _text(16, 24, "Throughput of the rbd controller's RPCs, as a share of bare librbd calls", size=16),
            _text(16, 44, "the line across a bar is what was aimed at; thin: the smallest and biggest turn", size=11),
            *_scale(height),
            *body,
            _text(16, height - 12, note, size=9),
            "</svg>",
            "",
        ]
    )


def _scale(height: int) -> Iterator[str]:
    for percent in range(0, 101, 20):
        x = _x(percent / 100)
        yield f'<line x1="{x}" y1="{_TOP - 6}" x2="{x}" y2="{height - _BOTTOM}" stroke="#ddd"/>'
        yield _text(x, height - _BOTTOM + 14, f"{percent} %", anchor="middle", size=10)


def _groups(groups: Mapping[str, Sequence[Result]]) -> Iterator[str]:
    y = _TOP
    for name, group in groups.items():
        yield _text(_LEFT - 90, y + _height(group) / 2 - 4, name, anchor="end")
        for position, result in enumerate(group):
            yield from _bar(result, y + position * (_BAR + _GAP), _COLOURS[position % len(_COLOURS)])
        y += _height(group)


def _bar(result: Result, y: float, colour: str) -> Iterator[str]:
    middle = y + _BAR - 4
    yield _text(_LEFT - 8, middle, f"{result.callers} callers", anchor="end", size=10)
    if not result.is_served:
        yield _text(_LEFT + 6, middle, "not served", size=10)
        return
    low, high = (_x(share) for share in result.shares)
    end = _x(result.share)
    yield f'<rect x="{_LEFT}" y="{y}" width="{end - _LEFT}" height="{_BAR}" fill="{colour}"/>'
    yield f'<line x1="{low}" y1="{y + _BAR / 2}" x2="{high}" y2="{y + _BAR / 2}" stroke="#777" stroke-width="1"/>'
    yield _text(max(end, high) + 6, middle, f"{result.share:.0%}", size=10)
    for aim in AIMS:
        if aim.is_about(result):
            x = _x(aim.share)
            yield f'<line x1="{x}" y1="{y - 2}" x2="{x}" y2="{y + _BAR + 2}" stroke="{_AIM_COLOUR}" stroke-width="2"/>'


def _height(group: Sequence[Result]) -> int:
    return len(group) * (_BAR + _GAP) + _GROUP_GAP


def _x(share: float) -> float:
    # A share above 1 is possible where the floor does more than it must; it ends at the edge.
    return round(_LEFT + min(share, 1.0) * (_WIDTH - _LEFT - _RIGHT - 40), 1)


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'
