"""Who uses a block device, asked of a real one that has a partition: a loop device."""

import os
import stat
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from csi_host.process import run
from csi_host.testing.runner import ScriptedRunner
from csi_host_common_node.holders import NOT_ALL_SEEN
from csi_host_rbd.attach.attacher import DeviceInUse
from csi_host_rbd.attach.block_devices import comes_true, holders_of, refuse_mounted
from csi_host_rbd.attach.nbd_devices import NbdDevice
from csi_host_rbd.attach.nbd_unmapping import unmap

pytestmark = pytest.mark.root

MIB = 1024**2
SECTOR = 512
# For looking at all processes of a machine at work.
SECONDS = 60.0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[str]:
    """A disk with one partition of 8 MiB."""
    file = tmp_path / "disk"
    file.touch()
    os.truncate(file, 16 * MIB)
    device = run(["losetup", "--find", "--show", "--partscan", str(file)], timeout=20).stdout.strip()
    # Not by a table on the disk: a kernel need not know any.
    run(["addpart", device, "1", str(MIB // SECTOR), str(8 * MIB // SECTOR)], timeout=20)
    yield device
    run(["losetup", "--detach", device], timeout=20)


@contextmanager
def opened_by_another(path: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sh", "-c", "exec 5<$1; echo; exec cat", "sh", path], stdin=-1, stdout=-1) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_a_disk_that_nobody_uses_is_free(disk: str) -> None:
    refuse_mounted(disk)
    # Who looks for a free loop device may have it open for a moment.
    assert comes_true(lambda: not holders_of(disk, seconds=SECONDS), patience=SECONDS, pause=time.sleep)


def test_a_disk_whose_partition_is_mounted_is_in_use(disk: str, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    run(["mkfs.ext4", "-q", f"{disk}p1"], timeout=60)
    run(["mount", f"{disk}p1", str(place)], timeout=20)
    try:
        with pytest.raises(DeviceInUse, match=str(place)):
            refuse_mounted(disk)
        assert set(holders_of(disk, seconds=SECONDS)) == {f"mount at {place}"}
    finally:
        run(["umount", str(place)], timeout=20)


def test_a_partition_that_is_mounted_elsewhere_by_another_name_is_seen(disk: str, tmp_path: Path) -> None:
    """As a container has it: a mount namespace and device nodes of its own."""
    place, node = tmp_path / "place", tmp_path / "node"
    place.mkdir()
    run(["mkfs.ext4", "-q", f"{disk}p1"], timeout=60)
    os.mknod(node, stat.S_IFBLK | 0o600, Path(f"{disk}p1").stat().st_rdev)
    script = 'mount "$1" "$2"; echo; exec cat'
    elsewhere = ["unshare", "--mount", "sh", "-c", script, "sh", str(node), str(place)]
    with subprocess.Popen(elsewhere, stdin=-1, stdout=-1) as process:
        assert process.stdout is not None
        process.stdout.readline()
        refuse_mounted(disk)
        assert holders_of(disk, seconds=SECONDS) == [f"mount at {place}"]
        process.kill()


def test_a_disk_whose_partition_is_open_is_in_use(disk: str) -> None:
    with opened_by_another(f"{disk}p1") as process:
        assert f"process {process.pid} (cat)" in holders_of(disk, seconds=SECONDS)


def test_a_device_that_is_open_by_another_name_is_in_use(disk: str) -> None:
    """A container's node of a block volume is made by its runtime."""
    node = Path(f"/dev/csi-host-test-{uuid.uuid4().hex[:8]}")
    os.mknod(node, stat.S_IFBLK | 0o600, Path(disk).stat().st_rdev)
    try:
        with opened_by_another(str(node)) as process:
            assert f"process {process.pid} (cat)" in holders_of(disk, seconds=SECONDS)
    finally:
        node.unlink()


def test_what_is_on_top_of_a_partition_is_a_holder(tmp_path: Path) -> None:
    (tmp_path / "nbd900/nbd900p1/holders/dm-7").mkdir(parents=True)
    (tmp_path / "nbd900/holders/dm-8").mkdir(parents=True)
    assert sorted(holders_of("/dev/nbd900", seconds=SECONDS, sys_block=tmp_path)) == ["/dev/dm-7", "/dev/dm-8"]


def test_a_network_block_device_stays_when_not_every_process_could_be_looked_at(disk: str) -> None:
    assert holders_of(disk, seconds=0) == [NOT_ALL_SEEN]
    run_nothing = ScriptedRunner()
    device = NbdDevice(device=disk, cookie="", size=0, read_only=False, daemon=None)
    with pytest.raises(DeviceInUse, match=NOT_ALL_SEEN):
        unmap(
            device,
            "",
            run=run_nothing,
            is_connected=lambda: True,
            patience=0,
            pause=lambda _: None,
            search_seconds=0,
        )
    assert run_nothing.commands == []
