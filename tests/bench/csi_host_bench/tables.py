"""Results as text: a table for people, JSON for programs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from .measuring import Result, Sample

_HEADINGS = (
    "RPC", "beside librbd's", "callers", "librbd/s", "RPC/s", "of librbd", "(turns)", "times", "librbd ms", "RPC ms",
    "CPU ms librbd", "driver", "OSD CPU ms librbd", "driver",
)  # fmt: skip
# So many columns hold words; the others hold numbers.
_WORDS = 2


@dataclass(frozen=True, kw_only=True)
class Aim:
    """What is asked of one RPC: at least this share of librbd's throughput."""

    rpc: str
    floor: str
    callers: int
    share: float
    words: str

    def is_about(self, result: Result) -> bool:
        """Whether this is asked of a result."""
        return (self.rpc, self.floor, self.callers) == (result.rpc, result.floor, result.callers)


AIMS = (
    Aim(rpc="CreateVolume", floor="create", callers=1, share=1 / 1.7, words="at most 1.7 times a bare create"),
    Aim(rpc="CreateVolume", floor="create", callers=32, share=0.45, words="at least 45 % of bare creates"),
    Aim(rpc="DeleteVolume", floor="trash move", callers=32, share=0.60, words="at least 60 % of bare trash moves"),
)


def table(results: Sequence[Result]) -> str:
    """Return the results in columns."""
    rows = [_HEADINGS, *(_row(result) for result in results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    return "\n".join("  ".join(_aligned(row, widths)).rstrip() for row in rows)


def verdicts(results: Sequence[Result]) -> list[str]:
    """Return a line for each aim: what was asked and what was reached."""
    return [_verdict(aim, result) for aim in AIMS for result in results if aim.is_about(result) and result.is_served]


def values(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return the results as JSON has them, each turn with its samples."""
    return [
        {
            "rpc": result.rpc,
            "floor": result.floor,
            "callers": result.callers,
            "share": result.share if result.is_served else None,
            "turns": [{"driver": vars(pair.rpc), "librbd": vars(pair.bare)} for pair in result.pairs],
        }
        for result in results
    ]


def environment_lines(environment: Mapping[str, str]) -> list[str]:
    """Return what the measurement was made on."""
    return [f"{name}: {value}" for name, value in environment.items()]


def _row(result: Result) -> tuple[str, ...]:
    if not result.is_served:
        return (result.rpc, result.floor, str(result.callers), "not served", *[""] * (len(_HEADINGS) - 4))
    low, high = result.shares
    rpc, bare = [pair.rpc for pair in result.pairs], [pair.bare for pair in result.pairs]
    return (
        result.rpc,
        result.floor,
        str(result.callers),
        f"{median(each.rate for each in bare):.1f}",
        f"{median(each.rate for each in rpc):.1f}",
        f"{result.share:.0%}",
        f"{low:.0%}-{high:.0%}",
        f"{1 / result.share:.2f}",
        f"{median(each.median_seconds for each in bare) * 1000:.1f}",
        f"{median(each.median_seconds for each in rpc) * 1000:.1f}",
        f"{_milliseconds_a_call(bare, 'cpu_seconds'):.2f}",
        f"{_milliseconds_a_call(rpc, 'cpu_seconds'):.2f}",
        f"{_milliseconds_a_call(bare, 'osd_cpu_seconds'):.2f}",
        f"{_milliseconds_a_call(rpc, 'osd_cpu_seconds'):.2f}",
    )


def _milliseconds_a_call(samples: Sequence[Sample], name: str) -> float:
    seconds: float = sum(getattr(sample, name) for sample in samples)
    return 1000 * seconds / sum(sample.calls for sample in samples)


def _aligned(row: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    yield from (text.ljust(width) for text, width in zip(row[:_WORDS], widths, strict=False))
    yield from (text.rjust(width) for text, width in zip(row[_WORDS:], widths[_WORDS:], strict=True))


def _verdict(aim: Aim, result: Result) -> str:
    word = "reached" if result.share >= aim.share else "missed"
    return (
        f"{word}: {aim.rpc} at {aim.callers} callers, {aim.words}: "
        f"{result.share:.0%} of the throughput, {1 / result.share:.2f} times"
    )
