"""Undoing what a failed call made."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Self

from csi_host.errors import Unavailable
from csi_host.request import current_request, serving


class LeftBehind(Unavailable):
    """A call failed, and so did taking away what it had made: ask again, the retry goes on from there."""


@contextmanager
def beyond_deadline() -> Iterator[None]:
    """Let the work inside finish although the caller's deadline has passed: leaving things half undone is worse."""
    request = current_request()
    if request is None:
        yield
        return
    with serving(replace(request, deadline=None)):
        yield


def undo(steps: Sequence[Callable[[], object]], because: BaseException) -> None:
    """Run every step, also after one failed; raise LeftBehind with all failures, the first being ``because``."""
    failures: list[str] = []
    with beyond_deadline():
        for step in steps:
            try:
                step()
            except Exception as error:  # noqa: BLE001 (whatever one step fails with, the next ones must be tried)
                failures.append(str(error))
    if failures:
        raise LeftBehind(f"{because}; and cleaning up failed: {'; '.join(failures)}") from because


class Rollback:
    """What to undo should the ``with`` end in an error; the latest step is undone first."""

    def __init__(self) -> None:
        self._steps: list[Callable[[], object]] = []

    def add(self, step: Callable[[], object]) -> None:
        """Have ``step`` run if anything fails from here on."""
        self._steps.insert(0, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Exception):
            undo(self._steps, error)
