"""The directory in which everything of one run is, and which goes with it."""

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .machine import Machine, wait_until

_PREFIX = "csi-host-walk-"
_LOCK = "lock"
# A unix socket's path holds 107 bytes, and the longest of ours lies 60 below the workplace.
_MAX_BYTES = 45
_TRACES_SECONDS = 5.0


class Workplace:
    """A directory of its own, held by a lock for as long as this process lives, however it ends."""

    def __init__(self, directory: Path, lock: int) -> None:
        self.directory = directory
        self._lock = lock
        self._machine = Machine(directory)

    @classmethod
    def make(cls) -> "Workplace":
        """Make a new one."""
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_parent()))
        new = directory / "lock.new"
        new.touch(mode=0o600)
        lock = _take_lock(new)
        # It gets the name that others look for once it is held: nobody takes a place being made for an abandoned one.
        new.rename(directory / _LOCK)
        return cls(directory, lock)

    @classmethod
    def abandoned(cls) -> Iterator["Workplace"]:
        """Those of earlier runs that were killed before they could clean up."""
        for directory in sorted(_parent().glob(f"{_PREFIX}*")):
            if _is_ours(directory):
                try:
                    lock = _take_lock(directory / _LOCK)
                except OSError:
                    continue  # somebody is at work there, or has just removed it
                yield cls(directory, lock)

    @property
    def cluster(self) -> Path:
        """The one-node Ceph's."""
        return self.directory / "ceph"

    @property
    def socket(self) -> Path:
        """csi-host's."""
        return self.directory / "csi.sock"

    @property
    def log_file(self) -> Path:
        """csi-host's."""
        return self.directory / "csi-host.log"

    @property
    def qemu(self) -> Path:
        """The attached images'."""
        return self.directory / "qemu"

    @property
    def staging(self) -> Path:
        """Where volumes are staged."""
        return self.directory / "staging"

    @property
    def pods(self) -> Path:
        """Where volumes are published."""
        return self.directory / "pods"

    def detach(self) -> None:
        """Let go of every volume that is still attached, however it came to be."""
        self._machine.detach()

    def remove(self) -> list[str]:
        """Remove it; return what could not be let go of, in which case it stays: nothing is removed below a mount."""
        self._machine.detach()
        self._machine.stop_daemons()
        # A loop device is cleared when the last one to have it open, udev for one, lets go.
        wait_until(lambda: not self._machine.traces(), _TRACES_SECONDS)
        traces = self._machine.traces()
        if not traces:
            shutil.rmtree(self.directory, ignore_errors=True)
            if self.directory.exists():
                traces = [f"directory {self.directory}"]
        os.close(self._lock)
        return traces


def _parent() -> Path:
    directory = Path(tempfile.gettempdir())
    return directory if len(os.fsencode(directory / _PREFIX)) + 8 <= _MAX_BYTES else Path("/tmp")  # noqa: S108 (mkdtemp's own subdirectory of it, made 0700)


def _is_ours(directory: Path) -> bool:
    # Everybody may write to the parent: a directory that another user prepared there is not to be acted upon.
    found = directory.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and stat.S_IMODE(found.st_mode) == 0o700  # noqa: PLR2004 (mkdtemp's mode)


def _take_lock(path: Path) -> int:
    lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    return lock
