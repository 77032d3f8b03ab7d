"""What of this machine's mounts, loop devices and processes belongs to a directory, and how to let go of it.

The kernel is asked, not a list of what was started: so nothing is missed that a hand-made call set up meanwhile, that
was under way when a signal came, or that an earlier, killed run left behind.
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

# Only these are stopped: somebody's `tail -f` of a log in the directory is none of our business. The clients of the
# cluster come first, as they still have to write to it.
_CLIENTS = frozenset({"csi-host", "qemu-storage-daemon", "rbd", "rados", "ceph"})
_DAEMONS = frozenset({"ceph-mgr", "ceph-osd", "ceph-mon"})
_PROGRAM_SECONDS = 20.0
_TERM_SECONDS = 10.0
_KILL_SECONDS = 5.0
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, kw_only=True)
class Mount:
    """A line of mountinfo, as far as it is of interest here."""

    point: Path
    root: str
    device: str
    fs_type: str

    @property
    def is_fuse(self) -> bool:
        """Whether a process serves it: it goes with that process."""
        return self.fs_type.startswith("fuse")


@dataclass(frozen=True, kw_only=True)
class Loop:
    """A loop device that is in use: ``number`` is its major:minor."""

    name: str
    number: str
    backing_file: Path


class Machine:
    """The traces of one directory on this machine."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def detach(self) -> None:
        """Let go of every volume, in the order in which things stand on each other; ``traces`` has what resists."""
        for mount in reversed(self._mounts()):
            if not mount.is_fuse:
                _unmount(mount.point)
        for loop in self._loops():
            _run("losetup", "--detach", f"/dev/{loop.name}")
        self._stop(_CLIENTS)
        for mount in reversed(self._mounts()):
            _unmount(mount.point)

    def stop_daemons(self) -> None:
        """End the cluster's daemons, where nobody better has."""
        self._stop(_DAEMONS)

    def traces(self) -> list[str]:
        """What is there, in words; empty when nothing is."""
        return [
            *(f"mount {mount.point}" for mount in self._mounts()),
            *(f"loop device /dev/{loop.name} on {loop.backing_file}" for loop in self._loops()),
            *(
                f"process {process} ({' '.join(words)[:120]})"
                for process, words in self._processes(_CLIENTS | _DAEMONS)
            ),
        ]

    def _mounts(self) -> list[Mount]:
        """The mounts below the directory, and those elsewhere of a volume whose loop device is backed from there."""
        loops = self._loops()
        numbers = {loop.number for loop in loops}
        nodes = {f"/{loop.name}" for loop in loops}
        return [
            mount
            for mount in _read_mounts()
            if mount.point.is_relative_to(self._directory)
            or mount.device in numbers
            or (mount.device == _device_of(Path("/dev")) and mount.root in nodes)
        ]

    def _loops(self) -> list[Loop]:
        return [loop for loop in _read_loops() if loop.backing_file.is_relative_to(self._directory)]

    def _processes(self, programs: frozenset[str]) -> list[tuple[int, list[str]]]:
        return [
            (process, words)
            for process, words in _read_processes()
            if process != os.getpid()
            and programs & {Path(word).name for word in words[:2]}
            and any(_mentions(word, self._directory) for word in words)
        ]

    def _stop(self, programs: frozenset[str]) -> None:
        for number, seconds in ((signal.SIGTERM, _TERM_SECONDS), (signal.SIGKILL, _KILL_SECONDS)):
            for process, _ in self._processes(programs):
                _send(process, number)
            if wait_until(lambda: not self._processes(programs), seconds):
                return


def wait_until(is_so: Callable[[], bool], seconds: float) -> bool:
    """Wait until it is so, at most so many seconds; return whether it is."""
    until = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def _mentions(word: str, directory: Path) -> bool:
    return re.search(rf"{re.escape(str(directory))}(/|,|$)", word) is not None


def _read_mounts() -> list[Mount]:
    mounts = []
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        _, _, device, root, point, *_ = left.split(" ")
        mounts.append(
            Mount(point=Path(_unescape(point)), root=_unescape(root), device=device, fs_type=right.split(" ")[0])
        )
    return mounts


def _unescape(text: str) -> str:
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def _device_of(path: Path) -> str:
    device = path.stat().st_dev
    return f"{os.major(device)}:{os.minor(device)}"


def _read_loops() -> list[Loop]:
    loops = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            file = Path(backing.read_text(encoding="utf-8").rstrip("\n").removesuffix(" (deleted)"))
            number = (backing.parents[1] / "dev").read_text(encoding="utf-8").strip()
        except OSError:
            continue  # detached since it was listed
        loops.append(Loop(name=backing.parents[1].name, number=number, backing_file=file))
    return loops


def _read_processes() -> Iterator[tuple[int, list[str]]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue  # ended since it was listed
            yield int(entry.name), [word for word in words if word]


def _send(process: int, number: signal.Signals) -> None:
    try:
        os.kill(process, number)
    except ProcessLookupError:
        return


def _unmount(point: Path) -> None:
    if not _run("umount", str(point)):
        # Somebody's shell stands in it: taken out of the tree now, gone when the shell leaves.
        _run("umount", "--lazy", str(point))


def _run(*argv: str) -> bool:
    try:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        return process.wait(_PROGRAM_SECONDS) == 0
    except OSError:
        return False
    except subprocess.TimeoutExpired:
        # It hangs in the kernel, where it cannot be killed, and must not take us with it.
        process.kill()
        return False
