"""Daemons that outlive this process: found by what the kernel shows of them, and ended for certain."""

import os
import select
import signal
from contextlib import suppress
from pathlib import Path

from csi_host.errors import Unavailable


def find_processes(program: str, argument: str) -> list[int]:
    """Return the pids of the running ``program`` processes that have ``argument`` on their command line."""
    return [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and _is_running(int(entry.name), program, argument)
    ]


def _is_running(pid: int, program: str, argument: str) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return False
    # The command line of a zombie is empty: it is not running.
    return Path(words[0]).name == program and argument in words


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
