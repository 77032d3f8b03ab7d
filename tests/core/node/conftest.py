import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from csi_host.node.mounts import mounts_below

MIB = 1024**2


@dataclass(frozen=True, kw_only=True)
class Volume:
    """An ext4 on a loop device, mounted."""

    device: str
    path: Path


@pytest.fixture
def workdir(tmp_path: Path) -> Iterator[Path]:
    """Lend a directory below which no mount may be left; what is left is removed all the same."""
    yield tmp_path
    left = mounts_below(tmp_path)
    for mount in reversed(left):
        subprocess.run(["umount", "--no-canonicalize", "--lazy", "--", mount.mount_point], check=False)
    assert left == ()


@pytest.fixture
def bind(workdir: Path) -> Iterator[Callable[[Path, Path], None]]:  # noqa: ARG001 - which checks after the unmounts
    """Bind mount for the length of a test; the last made goes first."""
    made: list[Path] = []

    def mount(source: Path, target: Path) -> None:
        subprocess.run(["mount", "--bind", "--", source, target], check=True)
        made.append(target)

    yield mount
    for target in reversed(made):
        subprocess.run(["umount", "--", target], check=True)


@pytest.fixture
def make_volume(workdir: Path) -> Iterator[Callable[..., Volume]]:
    volumes: list[Volume] = []

    def make(fs_type: str = "ext4", size: int = 32 * MIB, options: str = "defaults") -> Volume:
        file, path = workdir / f"file-{len(volumes)}", workdir / f"volume-{len(volumes)}"
        with file.open("wb") as content:
            content.truncate(size)
        path.mkdir()
        device = subprocess.check_output(["losetup", "--find", "--show", str(file)], text=True).strip()
        volumes.append(Volume(device=device, path=path))
        subprocess.run([f"mkfs.{fs_type}", "-q", device], check=True)
        subprocess.run(["mount", "-o", options, device, str(path)], check=True)
        return volumes[-1]

    yield make
    for volume in volumes:
        subprocess.run(["umount", str(volume.path)], check=True)
        subprocess.run(["losetup", "--detach", volume.device], check=True)
