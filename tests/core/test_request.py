import threading
import time

import pytest

from csi_host.errors import DeadlineExceeded
from csi_host.request import Request, current_request, remaining_seconds, seconds_for, serving


def test_there_is_no_request_outside_of_a_call() -> None:
    assert current_request() is None
    assert remaining_seconds() is None
    assert seconds_for("mkfs", at_most=30) == 30


def test_the_request_is_current_within_the_with_only_and_nests() -> None:
    outer, inner = Request(rpc="CreateVolume", request_id="1"), Request(rpc="DeleteVolume", request_id="2")
    with serving(outer):
        with serving(inner):
            assert current_request() is inner
        assert current_request() is outer
    assert current_request() is None


def test_another_thread_does_not_see_the_request() -> None:
    seen: list[Request | None] = []
    with serving(Request(rpc="CreateVolume", request_id="1")):
        thread = threading.Thread(target=lambda: seen.append(current_request()))
        thread.start()
        thread.join()
    assert seen == [None]


def test_a_step_gets_what_the_caller_has_left_at_most() -> None:
    with serving(Request(rpc="NodeStageVolume", request_id="1", deadline=time.monotonic() + 5)):
        assert 4 < seconds_for("mkfs", at_most=30) <= 5
        assert seconds_for("blkid", at_most=1) == 1


def test_without_a_deadline_a_step_gets_all_its_time() -> None:
    with serving(Request(rpc="NodeStageVolume", request_id="1")):
        assert remaining_seconds() is None
        assert seconds_for("mkfs", at_most=30) == 30


def test_a_step_is_not_begun_after_the_deadline() -> None:
    with serving(Request(rpc="NodeStageVolume", request_id="1", deadline=time.monotonic() - 1)):
        assert remaining_seconds() == 0
        with pytest.raises(DeadlineExceeded, match="before mkfs"):
            seconds_for("mkfs", at_most=30)


def test_the_age_counts_from_when_the_call_came_in() -> None:
    assert Request(rpc="Probe", request_id="1", started=time.monotonic() - 3).age_seconds() >= 3
