import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_host.errors import NotFound
from csi_host.node.guard import GuardedStats
from csi_host.node.stats import Usage, VolumeStats

HEALTHY = VolumeStats(bytes=Usage(total=3, used=1, available=2))
DEAD, ALIVE, GONE = Path("/dead"), Path("/alive"), Path("/gone")


class Mounts:
    """Volumes that answer, are not there, or hang until they are let go."""

    def __init__(self) -> None:
        self.is_let_go = threading.Event()
        self.is_asked = threading.Event()
        self.asked: list[Path] = []

    def __call__(self, path: Path) -> VolumeStats:
        self.asked.append(path)
        self.is_asked.set()
        if path == GONE:
            raise NotFound("nothing there")
        if path.is_relative_to(DEAD):
            assert self.is_let_go.wait(60)
        return HEALTHY


@pytest.fixture
def mounts() -> Iterator[Mounts]:
    mounts = Mounts()
    yield mounts
    mounts.is_let_go.set()


def _await_end_of_helpers() -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("stats "):
            thread.join(10)


def test_an_answer_and_a_refusal_pass_through(mounts: Mounts) -> None:
    stats = GuardedStats(mounts, budget_seconds=10)
    assert stats(ALIVE) == HEALTHY
    with pytest.raises(NotFound, match="nothing there"):
        stats(GONE)
    assert stats(ALIVE) == HEALTHY
    assert mounts.asked == [ALIVE, GONE, ALIVE]


def test_a_hanging_volume_is_abnormal_within_the_budget(mounts: Mounts) -> None:
    begin = time.monotonic()
    answer = GuardedStats(mounts, budget_seconds=0.05)(DEAD)
    assert time.monotonic() - begin < 5
    assert answer.abnormal
    assert answer.bytes is None
    assert "/dead has not answered for" in answer.message


def test_a_hanging_volume_is_asked_once_and_then_answered_for_at_once(mounts: Mounts) -> None:
    stats = GuardedStats(mounts, budget_seconds=0.5)
    stats(DEAD)
    begin = time.monotonic()
    assert all(stats(DEAD).abnormal for _ in range(50))
    assert time.monotonic() - begin < 0.4
    assert mounts.asked == [DEAD]
    assert stats(ALIVE) == HEALTHY


def test_a_volume_that_comes_back_is_healthy_again(mounts: Mounts) -> None:
    stats = GuardedStats(mounts, budget_seconds=0.05)
    assert stats(DEAD).abnormal
    mounts.is_let_go.set()
    _await_end_of_helpers()
    assert stats(DEAD) == HEALTHY
    assert mounts.asked == [DEAD, DEAD]


def test_callers_of_one_path_share_the_question_and_its_answer(mounts: Mounts) -> None:
    stats = GuardedStats(mounts, budget_seconds=30)
    answers: list[VolumeStats] = []
    callers = [threading.Thread(target=lambda: answers.append(stats(DEAD))) for _ in range(4)]
    for caller in callers:
        caller.start()
    assert mounts.is_asked.wait(10)
    mounts.is_let_go.set()
    for caller in callers:
        caller.join(10)
    assert answers == [HEALTHY] * 4


def test_the_number_of_stuck_threads_is_bounded(mounts: Mounts) -> None:
    stats = GuardedStats(mounts, budget_seconds=0.01, threads_at_most=3)
    for number in range(10):
        assert stats(DEAD / str(number)).abnormal
    assert len(mounts.asked) == 3
    assert "3 other volumes" in stats(ALIVE).message
    mounts.is_let_go.set()
    _await_end_of_helpers()
    stats(ALIVE)
    _await_end_of_helpers()
    assert mounts.asked[-1] == ALIVE


def test_a_stuck_thread_does_not_keep_the_process(mounts: Mounts) -> None:
    GuardedStats(mounts, budget_seconds=0.01)(DEAD)
    (helper,) = [thread for thread in threading.enumerate() if thread.name == "stats /dead"]
    assert helper.daemon
