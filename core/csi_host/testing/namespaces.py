"""Another container on this machine, as far as mounts go: a mount namespace of its own that lives as long as a test."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from csi_host.process import run

_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class RunThere:
    """Runs programs in a namespace; ``enter`` is how a command line for there begins."""

    enter: Sequence[str]

    def __call__(self, *argv: str) -> str:
        """Run a program and return what it printed."""
        return run([*self.enter, *argv], timeout=_SECONDS).stdout.strip()


@contextmanager
def other_mount_namespace() -> Iterator[RunThere]:
    """Yield what runs programs in a new mount namespace, which ends with the ``with``.

    The volumes that are mounted on this machine are not mounted there: tests of others may run beside.
    """
    keeper = subprocess.Popen(
        [sys.executable, "-m", "csi_host.testing.namespace_keeper"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with keeper:
        try:
            if keeper.stdout is None or keeper.stdout.readline() != b"ready\n":
                raise AssertionError("no mount namespace could be made")
            yield RunThere(enter=("nsenter", f"--mount=/proc/{keeper.pid}/ns/mnt", "--"))
        finally:
            # Its only process: what is mounted there goes with it.
            keeper.kill()
