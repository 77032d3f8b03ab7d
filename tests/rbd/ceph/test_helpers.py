import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from csi_host_rbd.ceph.failures import BackendTimeout, BackendUnavailable
from csi_host_rbd.ceph.helpers import FreeThreads, HelperThreads

SOON = 0.05
LONG = 20.0


@contextmanager
def _stuck(threads: HelperThreads, target: str = "") -> Iterator[threading.Event]:
    """One call hangs for the length of the ``with`` and was given up; the event says that it has ended."""
    go_on, ended = threading.Event(), threading.Event()

    def hang() -> None:
        go_on.wait(LONG)
        ended.set()

    with pytest.raises(BackendTimeout, match="doing it"):
        threads.call("doing it", hang, timeout=SOON, target=target)
    try:
        yield ended
    finally:
        go_on.set()
        assert ended.wait(LONG)


def _wait_until_idle(threads: HelperThreads) -> None:
    # A call of its own, as nothing else says that a thread has gone.
    for _ in range(1000):
        if threads.running == 0:
            return
        threading.Event().wait(0.01)
    raise AssertionError(f"{threads.running} threads are left")


def test_a_call_gives_its_result_or_its_error() -> None:
    threads = HelperThreads(purpose="test", limit=1)
    assert threads.call("adding", lambda: 1 + 1, timeout=LONG) == 2
    with pytest.raises(ZeroDivisionError):
        threads.call("dividing", lambda: 1 // 0, timeout=LONG)
    _wait_until_idle(threads)


def test_a_call_that_hangs_is_given_up_and_counts_until_it_ends() -> None:
    threads = HelperThreads(purpose="test", limit=2)
    with _stuck(threads):
        assert (threads.running, threads.hanging) == (1, 1)
        assert threads.call("adding", lambda: 2, timeout=LONG) == 2
    _wait_until_idle(threads)
    assert threads.hanging == 0


def test_when_too_many_hang_more_are_refused_at_once_until_one_ends() -> None:
    threads = HelperThreads(purpose="manager", limit=2)
    with _stuck(threads):
        with _stuck(threads), pytest.raises(BackendUnavailable, match="2 calls of the manager hang"):
            threads.call("adding", lambda: 2, timeout=LONG)
        while threads.hanging > 1:
            threading.Event().wait(0.01)
        assert threads.call("adding", lambda: 2, timeout=LONG) == 2


def test_nothing_else_is_done_to_what_a_call_that_was_given_up_may_still_change() -> None:
    threads = HelperThreads(purpose="test", limit=5)
    with _stuck(threads, target="pool/image"):
        with pytest.raises(BackendUnavailable, match=r"doing it.*still runs.*pool/image"):
            threads.call("removing", lambda: None, timeout=LONG, target="pool/image")
        assert threads.call("removing", lambda: 3, timeout=LONG, target="pool/other") == 3
    _wait_until_idle(threads)
    assert threads.call("removing", lambda: 4, timeout=LONG, target="pool/image") == 4


def test_the_last_call_is_made_after_the_one_that_hung_and_nobody_waits_for_it() -> None:
    threads, go_on, closed, order = HelperThreads(purpose="test", limit=1), threading.Event(), threading.Event(), []

    def hang() -> None:
        go_on.wait(LONG)
        order.append("opened")

    def close() -> None:
        order.append("closed")
        closed.set()

    helper = threads.start()
    with pytest.raises(BackendTimeout):
        helper.call("opening", hang, timeout=SOON)
    with pytest.raises(BackendTimeout, match="an earlier step still hangs"):
        helper.call("reading", lambda: None, timeout=LONG)
    helper.end(close, step="closing", timeout=LONG)
    assert order == []
    go_on.set()
    assert closed.wait(LONG)
    assert order == ["opened", "closed"]


def test_calls_after_each_other_share_a_thread_whatever_their_purpose() -> None:
    free = FreeThreads()
    purposes = [HelperThreads(purpose=name, limit=1, free=free) for name in ("map", "image")]
    seen = set()
    for threads in purposes * 5:
        seen.add(threads.call("asking", threading.get_ident, timeout=LONG))
        _wait_until_idle(threads)
        _wait_until_free(free, 1)
    assert len(seen) == 1
    assert threading.get_ident() not in seen


def test_the_thread_of_a_call_that_hung_is_free_again_when_it_has_ended() -> None:
    free = FreeThreads()
    threads = HelperThreads(purpose="test", limit=1, free=free)
    with _stuck(threads):
        assert free.count == 0
    _wait_until_free(free, 1)
    assert (threads.running, threads.hanging) == (0, 0)


def test_a_thread_that_nobody_needs_ends() -> None:
    free = FreeThreads(idle_seconds=SOON)
    threads = HelperThreads(purpose="test", limit=1, free=free)
    thread = threads.call("asking", threading.current_thread, timeout=LONG)
    thread.join(LONG)
    assert not thread.is_alive()
    assert free.count == 0
    assert threads.call("adding", lambda: 1, timeout=LONG) == 1


def test_a_helper_that_pauses_keeps_its_thread() -> None:
    free = FreeThreads(idle_seconds=SOON)
    helper = HelperThreads(purpose="test", limit=1, free=free).start()
    first = helper.call("asking", threading.get_ident, timeout=LONG)
    threading.Event().wait(4 * SOON)
    assert helper.call("asking", threading.get_ident, timeout=LONG) == first
    helper.end()


def test_where_no_thread_can_be_started_the_call_is_to_be_made_again() -> None:
    threads = HelperThreads(purpose="test", limit=1)
    # More than there is.
    usual = threading.stack_size(2**60)
    try:
        with pytest.raises(BackendUnavailable, match="no thread can be started for a call of the test"):
            threads.call("adding", lambda: 1, timeout=LONG)
    finally:
        threading.stack_size(usual)
    assert threads.running == 0
    assert threads.call("adding", lambda: 1, timeout=LONG) == 1


def _wait_until_free(free: FreeThreads, count: int) -> None:
    for _ in range(1000):
        if free.count == count:
            return
        threading.Event().wait(0.01)
    raise AssertionError(f"{free.count} threads are free, not {count}")
