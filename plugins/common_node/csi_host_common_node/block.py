"""Block devices: their size, and files made into devices by the kernel's loop driver."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from csi_host.errors import Aborted, FailedPrecondition, Unavailable
from csi_host.node.devices import is_read_only, size_bytes
from csi_host.node.mounts import StrPath, mounts_of_device, resolve_parent
from csi_host.process import ProcessError, Runner
from csi_host_common_node.holders import users_of
from csi_host_common_node.programs import require

__all__ = ["LoopBusy", "LoopDevices", "is_read_only", "size_bytes"]

_SECONDS = 30.0
_TRIES = 5
_PAUSE_SECONDS = 0.1
_DELETED = " (deleted)"


class LoopBusy(Aborted):
    """A loop device was told to go and is still held by somebody; the message names who."""


class LoopDevices:
    """Loop devices by losetup; what is attached is read from sysfs, which neither hangs nor touches the file.

    ``detach_seconds`` is how long a detached device may take to be gone.
    """

    def __init__(
        self, run: Runner, *, detach_seconds: float = 5.0, pause: Callable[[float], None] = time.sleep
    ) -> None:
        self._run = run
        self._detach_seconds = detach_seconds
        self._pause = pause

    def attach(self, file: StrPath, read_only: bool = False, *, direct: bool = False) -> str:
        """Return the loop device on ``file``; made unless there is one, as two on one file miss each other's writes.

        ``direct`` has a new device read and write past the file's page cache, which does not hear of what others write
        to what is behind the file. Raises FailedPrecondition when the file is attached for the other kind of access,
        or cannot be read past its cache, and ProcessError.
        """
        if existing := self.find(file):
            if is_going(existing[0]):
                raise LoopBusy(f"{existing[0]} is being detached from {os.fspath(file)}: {_holders(existing[0])}")
            if is_read_only(existing[0]) != read_only:
                kind = "for writing" if read_only else "read-only"
                raise FailedPrecondition(
                    f"{os.fspath(file)} is already attached {kind} as {existing[0]}; detach it first"
                )
            return existing[0]
        # Without --nooverlap: it looks into every other loop device and hangs with one whose backing does not answer.
        argv = ["losetup", "--find", "--show", *(["--read-only"] if read_only else [])]
        argv += ["--direct-io=on"] if direct else []
        device = self._attach([*argv, "--", resolve_parent(file)])
        if not read_only:
            self._make_writable(device, file)
        if direct and _attribute(device, "dio") != "1":
            self.detach(device)
            raise FailedPrecondition(f"{os.fspath(file)} cannot be attached past its page cache (direct I/O)")
        return device

    def find(self, file: StrPath) -> list[str]:
        """Return the loop devices on ``file``, also where it was deleted since; usually one or none."""
        shown = resolve_parent(file)
        return [device for device, backing in _attached() if backing.removesuffix(_DELETED) == shown]

    def detach(self, device: StrPath) -> None:
        """Take the loop device off its file and wait until it is gone; fine when it has none.

        The kernel says yes at once and lets a device go only when its last user has closed it. Raises LoopBusy then.
        """
        name = Path(device).name
        backing = backing_file(device)
        if backing is None:
            return
        require(["losetup"])
        try:
            self._run(["losetup", "--detach", os.fspath(device)], timeout=_SECONDS)
        except ProcessError:
            # Somebody may have been faster.
            if backing_file(device) == backing:
                raise
        until = time.monotonic() + self._detach_seconds
        while backing_file(device) == backing:
            if time.monotonic() >= until:
                raise LoopBusy(f"{name} still has {backing}: {_holders(device)}")
            self._pause(_PAUSE_SECONDS)

    def grow(self, device: StrPath) -> None:
        """Make the loop device take the size its file has now; raises ProcessError."""
        require(["losetup"])
        self._run(["losetup", "--set-capacity", os.fspath(device)], timeout=_SECONDS)

    def _make_writable(self, device: str, file: StrPath) -> None:
        if not is_read_only(device):
            return
        require(["blockdev"])
        # BLKROSET outlives the file that was attached when somebody set it.
        self._run(["blockdev", "--setrw", device], timeout=_SECONDS)
        if is_read_only(device):
            self.detach(device)
            raise FailedPrecondition(f"{os.fspath(file)} cannot be attached for writing: it can only be read")

    def _attach(self, argv: list[str]) -> str:
        require(["losetup"])
        # Another process can take the free device between its choice and its use, and a device file can be late.
        for tries_left in reversed(range(_TRIES)):
            try:
                device = self._run(argv, timeout=_SECONDS).stdout.strip()
            except ProcessError as error:
                if error.timed_out or error.is_missing or not tries_left or not Path(argv[-1]).exists():
                    raise
                self._pause(_PAUSE_SECONDS)
            else:
                return device
        raise Unavailable(f"{argv[-1]}: no loop device could be attached")


def backing_file(device: StrPath) -> str | None:
    """Return the path of the file behind a loop device as the kernel shows it, None when there is none."""
    return _attribute(device, "backing_file")


def is_going(device: StrPath) -> bool:
    """Whether a loop device was detached while somebody had it open: it loses its file with the last one to close it.

    Such a device must not be used any more, as its name may be another file's a moment later.
    """
    return _attribute(device, "autoclear") == "1"


def _attribute(device: StrPath, name: str) -> str | None:
    try:
        return os.fsdecode((Path("/sys/block") / Path(device).name / "loop" / name).read_bytes()).rstrip("\n")
    except OSError:
        return None


def _attached() -> list[tuple[str, str]]:
    names = sorted(entry.name for entry in Path("/sys/block").iterdir() if entry.name.startswith("loop"))
    found = [(f"/dev/{name}", backing_file(name)) for name in names]
    return [(device, backing) for device, backing in found if backing is not None]


def _holders(device: StrPath) -> str:
    try:
        places = [f"mounted at {mount.mount_point}" for mount in mounts_of_device(device)]
    except FileNotFoundError:
        places = []
    return ", ".join([*places, *users_of(os.fspath(device))]) or "no holder found in this namespace"
