"""What processes have used, by the kernel's own account."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
# Fields of /proc/<pid>/stat after the program's name, which may hold blanks: utime and stime.
_UTIME, _STIME = 11, 12
_KIB = 1024


@dataclass(frozen=True, kw_only=True)
class Memory:
    """A process's resident memory in bytes: now, and the most it ever was."""

    resident: int
    peak: int

    @classmethod
    def of(cls, process_id: int) -> Self:
        """Read it from /proc."""
        lines = Path(f"/proc/{process_id}/status").read_text(encoding="utf-8").splitlines()
        values = dict(line.split(":", 1) for line in lines)
        return cls(resident=_bytes(values["VmRSS"]), peak=_bytes(values["VmHWM"]))


def cpu_seconds(process_id: int) -> float:
    """Return the processor time a process has used, in the kernel's ticks of 10 ms."""
    stat = Path(f"/proc/{process_id}/stat").read_text(encoding="utf-8")
    fields = stat.rpartition(")")[2].split()
    return (int(fields[_UTIME]) + int(fields[_STIME])) / _TICKS_PER_SECOND


def thread_count(process_id: int) -> int:
    """Return how many threads a process has."""
    return len(list(Path(f"/proc/{process_id}/task").iterdir()))


def _bytes(text: str) -> int:
    return int(text.removesuffix(" kB")) * _KIB
