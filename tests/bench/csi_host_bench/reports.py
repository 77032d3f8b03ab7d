"""Thousands of volumes, made and deleted in batches, with the driver's memory looked at after each."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from .place import CallsFailedError, Place
from .processes import Memory, thread_count

MIB = 1024**2
# Another call is at it: what a caller may be told at any time, and then asks again.
_ASK_AGAIN = "ABORTED"
_ATTEMPTS = 10

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One thing that was to hold, and whether it did; None when it could not be tried."""

    holds: bool | None
    words: str

    def __str__(self) -> str:
        return f"{'NOT TRIED' if self.holds is None else 'holds' if self.holds else 'FAILS'}: {self.words}"


@dataclass(kw_only=True)
class Volumes:
    """Volumes of a driver, made and deleted by so many callers; ``say`` gets a line for each batch."""

    place: Place
    say: Say
    callers: int
    aborted: int = 0
    _numbers: Iterator[int] = field(default_factory=count)

    def resident_bytes(self) -> int:
        """Return the driver's resident memory."""
        return Memory.of(self.place.host.process.pid).resident

    def create(self, volumes: int) -> list[str]:
        """Make so many volumes and return their handles; raises CallsFailedError."""
        return self._batch("create", [f"volume-{next(self._numbers)}" for _ in range(volumes)])

    def delete(self, handles: Sequence[str]) -> None:
        """Delete volumes; raises CallsFailedError."""
        self._batch("delete", handles)

    def _batch(self, action: str, items: Sequence[str]) -> list[Any]:
        answers: dict[str, Any] = {}
        seconds = 0.0
        for _ in range(_ATTEMPTS):
            left = [item for item in items if item not in answers]
            called = self.place.driver.call_all(action, left, callers=self.callers)
            seconds += called.wall_seconds
            self._count(action, called.codes, called.errors)
            failed = set(called.failed)
            answers |= {left[at]: answer for at, answer in enumerate(called.answers) if at not in failed}
            if not failed:
                self._describe(action, len(items), seconds)
                return [answers[item] for item in items]
        raise CallsFailedError(f"{action}: {called.errors[0]}, {_ATTEMPTS} times")

    def _count(self, action: str, codes: Sequence[str], errors: Sequence[str]) -> None:
        other = [text for code, text in zip(codes, errors, strict=True) if code != _ASK_AGAIN]
        if other:
            kinds = ", ".join(f"{code} {number} times" for code, number in Counter(codes).items())
            raise CallsFailedError(f"{action}: {kinds}; {other[0]}")
        self.aborted += len(codes)

    def _describe(self, action: str, calls: int, seconds: float) -> None:
        process_id = self.place.host.process.pid
        self.say(
            f"{action:<7}{calls:>6} {calls / seconds:8.1f}/s {self.resident_bytes() / MIB:8.1f} MiB resident "
            f"{thread_count(process_id):>4} threads"
        )


def growth(before: int, after: int) -> float:
    """Return by which part something has grown; negative when it has shrunk."""
    return after / before - 1
