"""What the qemu mounter has left on this machine, asked of the kernel and not of the code under test."""

import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from csi_host.node.mounts import read_mounts
from csi_host.process import run
from csi_host_rbd.attach.processes import find_processes, wait_for_end
from csi_host_rbd.attach.qemu_modules import PROGRAM

_END_SECONDS = 10.0


def left_of_image(image: str, volume_id: str) -> list[str]:
    """Return what the kernel's clients have of an image: devices, daemons and dm-crypt's mapping."""
    names = {f"/dev/rbd{path.parent.name}": path for path in Path("/sys/bus/rbd/devices").glob("*/name")}
    daemons = [(pid, _text(Path(f"/proc/{pid}/cmdline"))) for pid in find_processes("rbd-nbd", "")]
    mappings = Path("/sys/block").glob("dm-*/dm/name")
    return [
        *(device for device, path in names.items() if _text(path) == image),
        *(f"rbd-nbd (pid {pid})" for pid, command in daemons if image in command),
        *(text for path in mappings if volume_id in (text := _text(path))),
    ]


def kill_rbd_nbd() -> None:
    """Kill the one rbd-nbd there is, and wait until it is gone."""
    (pid,) = find_processes("rbd-nbd", "")
    os.kill(pid, signal.SIGKILL)
    if not wait_for_end(pid, "rbd-nbd", "", timeout=_END_SECONDS):
        raise AssertionError(f"process {pid} does not die")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        # Other tests' devices come and go.
        return ""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What this machine has below a directory of the qemu mounter, asked of the kernel."""

    directory: Path

    def daemons(self) -> list[int]:
        """Return the pids of the storage daemons."""
        return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and self._is_ours(entry)]

    def _is_ours(self, entry: Path) -> bool:
        try:
            words = (entry / "cmdline").read_bytes().decode().split("\0")
        except (FileNotFoundError, ProcessLookupError):
            return False
        return words[0] == PROGRAM and any(str(self.directory) in word for word in words)

    def loops(self) -> list[str]:
        """Return the loop devices."""
        files = Path("/sys/block").glob("loop*/loop/backing_file")
        return [f"/dev/{file.parts[3]}" for file in files if str(self.directory) in _text(file)]

    def mounts(self) -> list[str]:
        """Return the places where something is mounted."""
        return [mount.mount_point for mount in read_mounts() if str(self.directory) in mount.mount_point]

    def assert_clean(self) -> None:
        """Raise AssertionError when anything is left but empty directories."""
        left = [*map(str, self.daemons()), *self.loops(), *self.mounts()]
        left += [str(path) for path in self.directory.glob("qemu/*")]
        if left:
            raise AssertionError(f"left behind: {', '.join(left)}")

    def clear_by_force(self) -> None:
        """Take away whatever a failed test left: what hangs would hang others on this machine."""
        for pid in self.daemons():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for place in reversed(self.mounts()):
            run(["umount", "--lazy", "--no-canonicalize", "--", place], timeout=20, ok_codes=range(256))
        for device in self.loops():
            run(["losetup", "--detach", device], timeout=20, ok_codes=range(256))

    def kill_daemon(self) -> None:
        """Kill the one daemon there is, and wait until it is gone."""
        (pid,) = self.daemons()
        pinned = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
        # It becomes readable when the process has ended.
        ended = select.select([pinned], [], [], _END_SECONDS)[0]
        os.close(pinned)
        if not ended:
            raise AssertionError(f"process {pid} does not die")

    @contextmanager
    def stopped_daemon(self) -> Iterator[None]:
        """Have the one daemon there is hang for the length of the ``with``."""
        (pid,) = self.daemons()
        pinned = os.pidfd_open(pid)
        signal.pidfd_send_signal(pinned, signal.SIGSTOP)
        try:
            yield
        finally:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(pinned, signal.SIGCONT)
            os.close(pinned)
