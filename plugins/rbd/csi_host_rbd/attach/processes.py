"""Daemons that outlive this process: found by what the kernel shows of them, and ended for certain.

Reading a process' command line takes the lock of its memory, which one holds that waits for a silent device in a page
fault: whoever reads it hangs as well. Its name takes no lock. So only of processes with a daemon's name the command
line is read; a daemon has its program's name, cut off after 15 bytes, however many threads it has and whatever those
are called (proc(5): comm is the main thread's, which execve sets).
"""

import os
import select
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from csi_host.errors import Unavailable

_NAME_BYTES = 15


def processes_of(program: str, proc: Path = Path("/proc")) -> Iterator[tuple[int, list[str]]]:
    """Yield the pid and the words of the command line of each running ``program``, by whatever path it was started."""
    for entry in proc.iterdir():
        if entry.name.isdigit() and (words := _command_line(entry, program)):
            yield int(entry.name), words


def find_processes(program: str, argument: str) -> list[int]:
    """Return the pids of the running ``program`` processes that have ``argument`` on their command line."""
    return [pid for pid, words in processes_of(program) if argument in words]


def _is_running(pid: int, program: str, argument: str) -> bool:
    return argument in _command_line(Path(f"/proc/{pid}"), program)


def _command_line(process: Path, program: str) -> list[str]:
    """Return the words of a process' command line, none when it is not the program or not running."""
    # Processes come and go while we look. Whatever else keeps us from looking must not count as "not running".
    with suppress(FileNotFoundError, ProcessLookupError):
        if (process / "comm").read_bytes().rstrip(b"\n") == os.fsencode(program)[:_NAME_BYTES]:
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            # The command line of a zombie is empty: it is not running.
            return words if Path(words[0]).name == program else []
    return []


def wait_for_end(pid: int, program: str, argument: str, *, timeout: float) -> bool:
    """Return whether the process ended within ``timeout`` seconds."""
    return _end(pid, program, argument, None, timeout)


def end_process(pid: int, program: str, argument: str, *, patience: float) -> None:
    """End a process, asking first: SIGTERM, and SIGKILL after ``patience`` seconds.

    The command line is compared again once the process is pinned, so that a reused pid is never signalled. Raises
    Unavailable when it survives SIGKILL for as long, as a process in uninterruptible sleep does.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        if _end(pid, program, argument, number, patience):
            return
    raise Unavailable(f"{program} (pid {pid}) does not end after SIGKILL; it waits in the kernel")


def _end(pid: int, program: str, argument: str, number: signal.Signals | None, timeout: float) -> bool:
    try:
        pinned = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        if not _is_running(pid, program, argument):
            return True
        if number is not None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pinned, number)
        poller = select.poll()
        poller.register(pinned, select.POLLIN)
        has_ended = bool(poller.poll(timeout * 1000))
    finally:
        os.close(pinned)
    if has_ended:
        _reap(pid)
    return has_ended


def _reap(pid: int) -> None:
    # A daemon's parent is pid 1, and in a container that may be this very process.
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
