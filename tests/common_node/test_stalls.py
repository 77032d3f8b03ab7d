import os
import threading
from pathlib import Path
from typing import Any

import pytest

from csi_host.node.mounts import mount_at
from csi_host.process import run
from csi_host_common_node.block import LoopDevices
from csi_host_common_node.filesystem import Filesystems
from csi_host_common_node.mounter import Mounter
from csi_host_common_node.plugin import csi_host_volume_stats
from csi_host_common_node.stalls import device_number, stalled

MIB = 1024**2


def number_of(device: str) -> str:
    rdev = Path(device).stat().st_rdev
    return f"{os.major(rdev)}:{os.minor(rdev)}"


def test_an_idle_device_and_one_that_is_gone_are_not_stalled(disk: Any) -> None:
    def never(_: float) -> None:
        raise AssertionError("there is nothing to wait for")

    assert not stalled(number_of(disk.device), seconds=30, pause=never)
    assert not stalled("7:987654", seconds=30, pause=never)


def test_a_device_that_completes_nothing_is_stalled_until_it_does(fuse_file: Any) -> None:
    loops = LoopDevices(run)
    device = loops.attach(fuse_file.path, direct=True)
    fuse_file.stop()

    def write() -> None:
        descriptor = os.open(device, os.O_RDWR)
        os.pwrite(descriptor, b"x" * 4096, 0)
        os.fsync(descriptor)
        os.close(descriptor)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while not stalled(number_of(device), seconds=0.3):
            assert writer.is_alive()
            writer.join(0.05)
        stats = csi_host_volume_stats(Path(device))
        assert stats.abnormal
        assert "backend" in stats.message
        assert stats.bytes is not None
    finally:
        fuse_file.resume()
        writer.join(20)
    assert not csi_host_volume_stats(Path(device)).abnormal
    loops.detach(device)


@pytest.mark.parametrize("fs_type", ["ext4", "btrfs"])
def test_the_device_below_a_filesystem_is_known_without_touching_it(
    make_disk: Any, workdir: Path, mounter: Mounter, fs_type: str
) -> None:
    disk, place = make_disk(128 * MIB), workdir / "mounted"
    place.mkdir()
    Filesystems(run).format(disk.device, fs_type)
    mounter.mount(disk.device, place, fs_type)
    mount = mount_at(place)
    assert mount is not None
    assert device_number(mount) == number_of(disk.device)
    mounter.unmount(place)
