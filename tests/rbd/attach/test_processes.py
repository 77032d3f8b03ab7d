import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from csi_host_rbd.attach.processes import end_process, find_processes, processes_of, wait_for_end

PROGRAM = Path(sys.executable).name
DEAF = "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); sys.stdin.read()"
POLITE = "import sys; print('ready', flush=True); sys.stdin.read()"


THREADED = """
import pathlib, sys, threading, time
def rename():
    pathlib.Path("/proc/thread-self/comm").write_text("a worker")
    print("ready", flush=True)
    time.sleep(60)
threading.Thread(target=rename, daemon=True).start()
sys.stdin.read()
"""


@contextmanager
def started(code: str, argument: str, *, program: str = sys.executable) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [program, "-c", code, argument], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


def test_a_process_is_found_by_its_program_and_one_whole_argument() -> None:
    with started(POLITE, "socket,path=/run/a") as process:
        assert find_processes(PROGRAM, "socket,path=/run/a") == [process.pid]
        assert find_processes(PROGRAM, "socket,path=/run/") == []
        assert find_processes("qemu-storage-daemon", "socket,path=/run/a") == []


def test_a_process_with_a_long_name_and_with_threads_of_other_names_is_found(
    tmp_path: Path,
) -> None:
    program = tmp_path / "qemu-storage-daemon"
    program.symlink_to(sys.executable)
    with started(THREADED, "threaded", program=str(program)) as process:
        assert find_processes("qemu-storage-daemon", "threaded") == [process.pid]
        assert find_processes("qemu-storage-d", "threaded") == []


def test_nothing_is_read_of_the_memory_of_other_programs_processes(tmp_path: Path) -> None:
    """One of them may wait for a silent device, and whoever reads its command line then waits with it."""
    for pid, comm in {"1": "hung", "2": "rbd-nbd", "3": "rbd-nbd-helper"}.items():
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "comm").write_text(f"{comm}\n")
        # Reading it is an error.
        (tmp_path / pid / "cmdline").mkdir()
    (tmp_path / "2/cmdline").rmdir()
    (tmp_path / "2/cmdline").write_bytes(b"/usr/bin/rbd-nbd\0map\0one\0")
    (tmp_path / "4").mkdir()
    assert list(processes_of("rbd-nbd", tmp_path)) == [(2, ["/usr/bin/rbd-nbd", "map", "one", ""])]


def test_a_process_that_ended_and_was_not_reaped_is_not_found() -> None:
    with started(POLITE, "zombie") as process:
        assert process.stdin is not None
        process.stdin.close()
        assert wait_for_end(process.pid, PROGRAM, "zombie", timeout=20)
        assert find_processes(PROGRAM, "zombie") == []


def test_a_polite_process_is_ended_with_sigterm() -> None:
    with started(POLITE, "polite") as process:
        seen = process.pid
        end_process(seen, PROGRAM, "polite", patience=20)
        assert find_processes(PROGRAM, "polite") == []


def test_a_process_that_is_deaf_to_sigterm_is_killed() -> None:
    with started(DEAF, "deaf") as process:
        end_process(process.pid, PROGRAM, "deaf", patience=0.2)
        assert find_processes(PROGRAM, "deaf") == []


def test_a_stopped_process_is_killed() -> None:
    with started(POLITE, "stopped") as process:
        process.send_signal(signal.SIGSTOP)
        end_process(process.pid, PROGRAM, "stopped", patience=0.2)
        assert find_processes(PROGRAM, "stopped") == []


def test_a_pid_that_now_belongs_to_somebody_else_is_left_alone() -> None:
    with started(POLITE, "somebody else") as process:
        end_process(process.pid, PROGRAM, "ours", patience=0.2)
        assert wait_for_end(process.pid, PROGRAM, "ours", timeout=0)
        assert find_processes(PROGRAM, "somebody else") == [process.pid]


def test_waiting_for_a_process_that_goes_on_ends_in_time() -> None:
    with started(POLITE, "goes on") as process:
        assert not wait_for_end(process.pid, PROGRAM, "goes on", timeout=0.05)


def test_ending_a_process_that_is_gone_is_nothing_to_do() -> None:
    with started(POLITE, "gone") as process:
        pid = process.pid
    end_process(pid, PROGRAM, "gone", patience=0.1)
    assert wait_for_end(pid, PROGRAM, "gone", timeout=0)
