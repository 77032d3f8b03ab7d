"""Targets that show a device which is gone, and what must never be taken for one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from csi_host.node.devices import device_with
from csi_host.node.mounts import mount_at, parse_mounts
from csi_host.process import run
from csi_host.testing.device_nodes import remove_loop_device, spare_loop_device
from csi_host_common_node.mounter import Mounter
from csi_host_common_node.volumes import TargetInUse, clear_vanished, publish_block, shows_vanished, unpublish


@pytest.fixture
def staged_block(disk: Any, workdir: Path, mounter: Mounter) -> Iterator[Path]:
    """Lend a file that shows a living block device."""
    place = workdir / "staged block"
    place.touch()
    mounter.bind(disk.device, place)
    yield place
    mounter.unmount(place)


@pytest.fixture
def doomed(workdir: Path) -> Iterator[str]:
    """Lend a loop device on a file, which a test may remove."""
    (workdir / "doomed").write_bytes(bytes(2**20))
    with spare_loop_device() as device:
        run(["losetup", device, str(workdir / "doomed")], timeout=20)
        yield device
        if Path(device).exists():
            remove_loop_device(device)


def number_of(device: Path) -> int:
    return device.stat().st_rdev


def test_a_target_of_a_device_that_is_gone_shows_the_new_one(
    staged_block: Path, doomed: str, workdir: Path, mounter: Mounter
) -> None:
    target = workdir / "target"
    publish_block(mounter, doomed, target)
    # While the former device is there it stays, as it may be somebody's.
    clear_vanished(mounter, staged_block, target)
    with pytest.raises(TargetInUse):
        publish_block(mounter, staged_block, target)
    remove_loop_device(doomed)
    assert number_of(target) != number_of(staged_block)
    clear_vanished(mounter, staged_block, target)
    publish_block(mounter, staged_block, target)
    assert number_of(target) == number_of(staged_block)
    assert not shows_vanished(staged_block, target)
    unpublish(mounter, target)


def test_what_lives_below_a_dead_mount_is_left_alone(
    make_disk: Any, staged_block: Path, doomed: str, workdir: Path, mounter: Mounter
) -> None:
    target = workdir / "target"
    publish_block(mounter, make_disk().device, target)
    run(["mount", "--bind", doomed, str(target)], timeout=20)
    remove_loop_device(doomed)
    before = mount_at(target)
    clear_vanished(mounter, staged_block, target)
    assert mount_at(target) == before
    unpublish(mounter, target)


def test_a_target_is_left_alone_where_the_staged_device_is_gone_too(
    staged_block: Path, doomed: str, workdir: Path, mounter: Mounter
) -> None:
    staged, target = workdir / "dead", workdir / "target"
    staged.touch()
    mounter.bind(doomed, staged)
    publish_block(mounter, staged, target)
    remove_loop_device(doomed)
    assert not shows_vanished(staged, target)
    assert not shows_vanished(workdir / "nothing", target)
    # Only a staged volume that lives has a use for the place.
    assert shows_vanished(staged_block, target)
    unpublish(mounter, target)
    mounter.unmount(staged)


@pytest.mark.parametrize(
    ("target", "is_vanished"),
    [
        ("8191:1 / /pod rw - ext4 /dev/rbd0 rw", True),
        ("8191:1 / /pod rw - xfs /dev/rbd0 rw", True),
        ("{living} / /pod rw - ext4 /dev/loop0 rw", False),
        # Neither tells of a device by its number.
        ("0:99 / /pod rw - btrfs /dev/rbd0 rw", False),
        ("0:98 / /pod rw - nfs4 server:/export rw", False),
        ("8191:1 / /another rw - ext4 /dev/rbd0 rw", False),
        ("8191:1 / /pod rw - ext4 /dev/rbd0 rw\n41 40 {living} / /pod rw - ext4 /dev/loop0 rw", False),
    ],
)
def test_a_filesystem_is_dead_when_its_device_is_gone(disk: Any, target: str, *, is_vanished: bool) -> None:
    living = Path(f"/sys/block/{Path(disk.device).name}/dev").read_text().strip()
    assert device_with(living) == disk.device
    assert device_with("8191:1") is None
    text = f"1 0 8:1 / / rw - ext4 /dev/sda1 rw\n30 1 {{living}} / /stage rw - ext4 /dev/loop0 rw\n40 1 {target}\n"
    mounts = parse_mounts(text.replace("{living}", living).encode())
    assert shows_vanished("/stage", "/pod", mounts) is is_vanished
