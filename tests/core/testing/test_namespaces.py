import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from csi_host.node.mounts import is_mount_point, parse_mounts
from csi_host.testing.namespaces import RunThere, other_mount_namespace

pytestmark = pytest.mark.root

MIB = 1024**2

Mount = Callable[..., Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Lend a way to mount something below a test's directory, until the test unmounts it or ends."""
    made: list[Path] = []

    def mount_at(name: str, *argv: str | Path, is_file: bool = False) -> Path:
        place = tmp_path / name
        if is_file:
            place.touch()
        else:
            place.mkdir(exist_ok=True)
        subprocess.run(["mount", *argv, place], check=True)
        made.append(place)
        return place

    yield mount_at
    for place in reversed(made):
        if is_mount_point(place):
            subprocess.run(["umount", "--lazy", "--no-canonicalize", place], check=True)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[str]:
    file = tmp_path / "disk"
    file.touch()
    os.truncate(file, 32 * MIB)
    device = subprocess.check_output(["losetup", "--find", "--show", file], text=True).strip()
    yield device
    subprocess.run(["losetup", "--detach", device], check=True)


@contextmanager
def stopped_server(tmp_path: Path) -> Iterator[Path]:
    """A mount whose server does not answer."""
    content, place = tmp_path / "content", tmp_path / "exported"
    content.touch()
    os.truncate(content, MIB)
    place.touch()
    server = subprocess.Popen(
        [
            *("qemu-storage-daemon", "--blockdev", f"driver=file,node-name=disk,filename={content}"),
            *("--export", f"type=fuse,id=export,node-name=disk,mountpoint={place}"),
        ]
    )
    with server:
        try:
            until = time.monotonic() + 20
            while not is_mount_point(place) and time.monotonic() < until:
                time.sleep(0.02)
            server.send_signal(signal.SIGSTOP)
            yield place
        finally:
            server.send_signal(signal.SIGCONT)
            server.kill()
            if is_mount_point(place):
                subprocess.run(["umount", "--lazy", "--no-canonicalize", place], check=True)


def places_in(run_there: RunThere) -> set[str]:
    return {mount.mount_point for mount in parse_mounts(run_there("cat", "/proc/self/mountinfo").encode())}


def test_a_volume_that_is_mounted_on_the_machine_is_not_mounted_there(device: str, mount: Mount) -> None:
    subprocess.run(["mkfs.ext4", "-q", device], check=True)
    filesystem = mount("filesystem", device)
    (filesystem / "directory").mkdir()
    below = mount("filesystem/directory", "-t", "tmpfs", "none")
    with other_mount_namespace() as run_there:
        assert not {str(filesystem), str(below)} & places_in(run_there)
        subprocess.run(["umount", below], check=True)
        subprocess.run(["umount", filesystem], check=True)
        # Refused for what is mounted anywhere.
        os.close(os.open(device, os.O_RDWR | os.O_EXCL))


def test_a_block_volume_is_not_there(device: str, mount: Mount) -> None:
    block = mount("block", "--bind", device, is_file=True)
    with other_mount_namespace() as run_there:
        assert str(block) not in places_in(run_there)
        assert run_there("stat", "--format=%F", device) == "block special file"


def test_a_mount_that_does_not_answer_is_not_there(tmp_path: Path) -> None:
    with stopped_server(tmp_path) as place, other_mount_namespace() as run_there:
        assert str(place) not in places_in(run_there)
        assert is_mount_point(place)


def test_all_else_stays_and_the_machine_keeps_its_mounts(device: str, mount: Mount) -> None:
    subprocess.run(["mkfs.ext4", "-q", device], check=True)
    # As containers have it: what is unmounted in a copy of a shared mount is unmounted everywhere.
    around = mount("around", "-t", "tmpfs", "none")
    subprocess.run(["mount", "--make-shared", around], check=True)
    (around / "filesystem").mkdir()
    filesystem = mount("around/filesystem", device)
    with other_mount_namespace() as run_there:
        assert str(around) in places_in(run_there)
        assert str(filesystem) not in places_in(run_there)
        assert is_mount_point(filesystem)
        run_there("umount", str(around))
        assert is_mount_point(around)
