import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from csi_host.node.mounts import mounts_below
from csi_host.process import ProcessResult, Runner, run
from csi_host_common_node.block import LoopDevices, backing_file
from csi_host_common_node.filesystem import Filesystems
from csi_host_common_node.mounter import Mounter

MIB = 1024**2

_LOOP_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Disk:
    """A loop device and the sparse file behind it."""

    file: Path
    device: str

    def write(self, content: bytes, *, at: int = 0) -> None:
        """Write past the filesystem, and have it on the file."""
        descriptor = os.open(self.device, os.O_WRONLY)
        try:
            os.pwrite(descriptor, content, at)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def resize(self, size: int) -> None:
        """Resize the file and let the loop device see it."""
        os.truncate(self.file, size)
        LoopDevices(run).grow(self.device)

    def checksum(self) -> str:
        """Return a checksum of all bytes of the device."""
        with Path(self.device).open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()


@dataclass
class FuseFile:
    """A file served by a daemon of our own through FUSE, which can be killed or stopped below a mount."""

    path: Path
    daemon: subprocess.Popen[bytes]

    def kill(self) -> None:
        """Leave a mount behind that answers ENOTCONN."""
        self.daemon.kill()
        self.daemon.wait()

    def stop(self) -> None:
        """Leave a mount behind that does not answer."""
        self.daemon.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let the mount answer again."""
        self.daemon.send_signal(signal.SIGCONT)


class InterceptingRunner:
    """The real runner, but for programs that a test answers for; keeps what was started."""

    def __init__(self) -> None:
        self.started: list[tuple[str, ...]] = []
        self.instead: dict[str, Runner] = {}

    def __call__(self, argv: Sequence[str], **how: object) -> ProcessResult:
        """Run ``argv``, or what is there in its place."""
        self.started.append(tuple(argv))
        return self.instead.get(argv[0], run)(argv, **how)  # type: ignore[arg-type]  # passed on as they came

    def programs(self) -> list[str]:
        """Return the names of the programs started, in order."""
        return [argv[0] for argv in self.started]


@pytest.fixture
def workdir(tmp_path: Path) -> Iterator[Path]:
    """Lend a directory below which no mount and no loop device may be left; what is left is removed all the same."""
    yield tmp_path
    left = _unmount_all_below(tmp_path)
    # A device that was detached while something of the machine's looks into it goes away a moment later.
    deadline = time.monotonic() + _LOOP_SECONDS
    while _loop_devices_on(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    for name, file in _loop_devices_on(tmp_path).items():
        left.append(f"/dev/{name} on {file}")
        subprocess.run(["losetup", "--detach", f"/dev/{name}"], check=False)
    assert left == []


@pytest.fixture
def below_dev() -> Iterator[Path]:
    """Lend a directory below /dev, below which no mount may be left; what is left is removed all the same."""
    directory = Path(tempfile.mkdtemp(prefix="csi-host-test-", dir="/dev/shm"))
    yield directory
    left = _unmount_all_below(directory)
    shutil.rmtree(directory)
    assert left == []


def _unmount_all_below(directory: Path) -> list[str]:
    left = [mount.mount_point for mount in mounts_below(directory)]
    for place in reversed(left):
        subprocess.run(["umount", "--no-canonicalize", "--lazy", "--", place], check=False)
    return [f"mount at {place}" for place in left]


def _loop_devices_on(directory: Path) -> dict[str, str]:
    files = {entry.name: backing_file(entry.name) for entry in Path("/sys/block").glob("loop*")}
    return {name: file for name, file in files.items() if file is not None and file.startswith(f"{directory}/")}


@pytest.fixture
def make_disk(workdir: Path) -> Iterator[Callable[..., Disk]]:
    loops = LoopDevices(run)
    disks: list[Disk] = []

    def make(size: int = 64 * MIB) -> Disk:
        file = workdir / f"disk-{len(disks)}"
        with file.open("wb") as content:
            content.truncate(size)
        disks.append(Disk(file=file, device=loops.attach(file)))
        return disks[-1]

    yield make
    for disk in disks:
        loops.detach(disk.device)


@pytest.fixture
def disk(make_disk: Callable[..., Disk]) -> Disk:
    return make_disk()


@pytest.fixture
def read_only() -> Iterator[Callable[[str], None]]:
    """Lend a way to make a device read-only for the length of a test: the kernel would keep it so for its next file."""
    devices: list[str] = []

    def make(device: str) -> None:
        devices.append(device)
        run(["blockdev", "--setro", device], timeout=10)

    yield make
    for device in devices:
        run(["blockdev", "--setrw", device], timeout=10)


@pytest.fixture
def runner() -> InterceptingRunner:
    return InterceptingRunner()


@pytest.fixture
def mounter() -> Mounter:
    return Mounter(run)


@pytest.fixture
def staged(workdir: Path, disk: Disk, mounter: Mounter) -> Iterator[Path]:
    """Lend a directory on which a fresh ext4 is mounted."""
    Filesystems(run).format(disk.device, "ext4")
    place = workdir / "staged"
    place.mkdir()
    mounter.mount(disk.device, place, "ext4")
    yield place
    mounter.unmount(place)


@pytest.fixture
def fuse_file(workdir: Path) -> Iterator[FuseFile]:
    with _served_at(workdir) as fuse:
        yield fuse


@pytest.fixture
def fuse_file_below_dev(below_dev: Path) -> Iterator[FuseFile]:
    with _served_at(below_dev) as fuse:
        yield fuse


@contextmanager
def _served_at(directory: Path) -> Iterator[FuseFile]:
    content, path = directory / "content", directory / "exported"
    with content.open("wb") as file:
        file.truncate(8 * MIB)
    path.touch()
    daemon = subprocess.Popen(
        [
            *("qemu-storage-daemon", "--blockdev", f"driver=file,node-name=disk,filename={content}"),
            *("--export", f"type=fuse,id=export,node-name=disk,mountpoint={path},writable=on"),
        ]
    )
    fuse = FuseFile(path=path, daemon=daemon)
    try:
        until = time.monotonic() + 20
        while not mounts_below(directory) and time.monotonic() < until:
            time.sleep(0.02)
        yield fuse
    finally:
        fuse.resume()
        fuse.kill()
        Mounter(run).unmount(path)
