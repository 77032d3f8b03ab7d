import subprocess
import sys
import threading
import time

import pytest

from csi_host.server.pools import DaemonPool

# A thread with such a stack cannot be started.
_MORE_THAN_THERE_IS = 2**60


def test_a_task_gives_its_result_or_its_error() -> None:
    pool = DaemonPool(2, "test")
    assert pool.submit(divmod, 7, 2).result(10) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        pool.submit(divmod, 7, 0).result(10)
    pool.shutdown()


def test_as_many_tasks_run_at_once_as_there_are_threads_and_no_more() -> None:
    pool = DaemonPool(3, "test")
    all_in, leave = threading.Barrier(4), threading.Event()

    def stay() -> None:
        all_in.wait(10)
        leave.wait(10)

    stuck = [pool.submit(stay) for _ in range(3)]
    all_in.wait(10)
    queued = pool.submit(threading.get_ident)
    assert not queued.done()
    leave.set()
    assert queued.result(10) != threading.get_ident()
    for future in stuck:
        future.result(10)
    pool.shutdown()


def test_an_idle_thread_is_used_again() -> None:
    pool = DaemonPool(8, "test")
    seen = set()
    for _ in range(50):
        seen.add(pool.submit(threading.get_ident).result(10))
        _until_idle(pool)
    assert len(seen) == 1
    pool.shutdown()


def test_one_caller_after_a_crowd_gets_one_thread_and_leaves_the_others_alone() -> None:
    pool = DaemonPool(8, "test")
    crowd = threading.Barrier(8)
    for future in [pool.submit(crowd.wait, 10) for _ in range(8)]:
        future.result(10)
    seen = set()
    for _ in range(50):
        _until_idle(pool, 8)
        seen.add(pool.submit(threading.get_ident).result(10))
    assert len(seen) == 1
    pool.shutdown()


def test_where_no_thread_can_be_started_those_that_there_are_do_the_work() -> None:
    pool = DaemonPool(8, "test")
    go = threading.Event()
    first = pool.submit(go.wait, 10)
    usual = threading.stack_size(_MORE_THAN_THERE_IS)
    try:
        second = pool.submit(divmod, 7, 2)
    finally:
        threading.stack_size(usual)
    go.set()
    assert first.result(10)
    assert second.result(10) == (3, 1)
    pool.shutdown()


def test_after_shutdown_queued_work_is_done_and_new_work_is_refused() -> None:
    pool = DaemonPool(1, "test")
    go = threading.Event()
    first, second = pool.submit(go.wait, 10), pool.submit(divmod, 7, 2)
    pool.shutdown()
    assert not pool.is_open
    with pytest.raises(RuntimeError, match="test pool is shut down"):
        pool.submit(divmod, 7, 2)
    go.set()
    assert first.result(10)
    assert second.result(10) == (3, 1)


def test_a_stuck_task_does_not_keep_the_interpreter_alive() -> None:
    program = (
        "import threading\n"
        "from csi_host.server.pools import DaemonPool\n"
        "begun = threading.Event()\n"
        "DaemonPool(1, 'test').submit(lambda: (begun.set(), threading.Event().wait()))\n"
        "begun.wait()\n"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=30, check=False).returncode == 0


def _until_idle(pool: DaemonPool, threads: int = 1) -> None:
    # The thread notes that it is idle just after the result is there.
    deadline = time.monotonic() + 10
    while pool.idle < threads and time.monotonic() < deadline:
        time.sleep(0.001)
