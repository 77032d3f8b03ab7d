"""The processes of a dev cluster, found by the configuration file in their command lines: nobody else's are touched."""

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from csi_host.errors import FailedPrecondition

DAEMONS = ("ceph-mgr", "ceph-osd", "ceph-mon")
_COMMANDS = frozenset({"ceph", "rbd", "rados"})
_STOP_SECONDS = 5.0
_STOP_PAUSE_SECONDS = 0.01


class DaemonsRemain(FailedPrecondition):
    """Daemons of the cluster do not end, not even when they are killed."""


@dataclass(frozen=True, kw_only=True)
class Daemon:
    """A running daemon of the cluster."""

    program: str
    pid: int


class Daemons:
    """The daemons and the commands that run with the configuration file ``ceph_conf``."""

    def __init__(self, ceph_conf: Path) -> None:
        self._ceph_conf = str(ceph_conf)

    def running(self) -> list[Daemon]:
        """Return the daemons that run."""
        return [daemon for pid in _pids() if (daemon := self._daemon(pid)) is not None]

    def suspend(self, program: str) -> None:
        """Suspend a daemon (SIGSTOP), and wait until it does nothing any more."""
        self._signal(program, signal.SIGSTOP)

    def resume(self, program: str) -> None:
        """Let a daemon go on (SIGCONT)."""
        self._signal(program, signal.SIGCONT)

    def stop(self) -> None:
        """End all of them; raises DaemonsRemain."""
        for pid in self._commands():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for number in (signal.SIGTERM, signal.SIGKILL):
            for daemon in self.running():
                with suppress(ProcessLookupError):
                    os.kill(daemon.pid, number)
                    # One that was suspended would not hear the first signal.
                    os.kill(daemon.pid, signal.SIGCONT)
            deadline = time.monotonic() + _STOP_SECONDS
            while self.running() and time.monotonic() < deadline:
                time.sleep(0.05)
        if left := self.running():
            names = ", ".join(f"{one.program} ({one.pid})" for one in left)
            raise DaemonsRemain(f"these daemons do not end: {names}")

    def _signal(self, program: str, number: signal.Signals) -> None:
        for daemon in self.running():
            if daemon.program == program:
                os.kill(daemon.pid, number)
                if number is signal.SIGSTOP:
                    _wait_until_stopped(daemon.pid)

    def _daemon(self, pid: int) -> Daemon | None:
        argv = _command_line(pid)
        program = Path(argv[0]).name
        return Daemon(program=program, pid=pid) if program in DAEMONS and self._ceph_conf in argv else None

    def _commands(self) -> list[int]:
        """Return the commands that still wait for the cluster: what a killed ``up`` began goes on without it."""
        return [pid for pid in _pids() if self._is_command(_command_line(pid))]

    def _is_command(self, argv: list[str]) -> bool:
        # `ceph` is a script: its name is the interpreter's first argument.
        return self._ceph_conf in argv and any(Path(word).name in _COMMANDS for word in argv[:2])


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _command_line(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return [""]


def _wait_until_stopped(pid: int) -> None:
    """Wait until every thread of a process is: a signal is sent at once, and a thread at work may still answer."""
    deadline = time.monotonic() + _STOP_SECONDS
    while time.monotonic() < deadline:
        # What follows the program's name, which may hold anything, begins with the state.
        states = [
            stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
            for stat in Path(f"/proc/{pid}/task").glob("*/stat")
        ]
        if all(state in "tT" for state in states):
            return
        time.sleep(_STOP_PAUSE_SECONDS)
