"""An xfs that says itself that its mkfs was cut off is erased, within a time, and nothing else is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from csi_host.errors import Unavailable
from csi_host.process import ProcessError, ProcessTimeout, run
from csi_host_common_node.filesystem import Blank, Filesystems, Has
from csi_host_common_node.mounter import Mounter
from csi_host_common_node.patience import DeviceSilent, Patience
from csi_host_common_node.reading import DeviceUnclear

MIB = 1024**2


@pytest.fixture
def unfinished(make_disk: Callable[..., Any]) -> Any:
    disk = make_disk(400 * MIB)
    run(["mkfs.xfs", "-q", disk.device], timeout=60)
    run(["xfs_db", "-x", "-c", "sb 0", "-c", "write inprogress 1", disk.device], timeout=60)
    return disk


def test_it_is_erased(unfinished: Any) -> None:
    filesystems = Filesystems(run)
    assert filesystems.content_of(unfinished.device) == Has(kind="xfs")
    assert filesystems.erase_unfinished_xfs(unfinished.device)
    assert filesystems.content_of(unfinished.device) == Blank()
    filesystems.format(unfinished.device, "xfs", proof=filesystems.accept_unsigned(unfinished.device))
    assert filesystems.content_of(unfinished.device) == Has(kind="xfs")


@pytest.mark.parametrize("fs_type", ["xfs", "ext4"])
def test_a_whole_filesystem_keeps_every_byte(make_disk: Callable[..., Any], runner: Any, fs_type: str) -> None:
    disk = make_disk(400 * MIB)
    run([f"mkfs.{fs_type}", "-q", disk.device], timeout=60)
    before = disk.checksum()
    assert not Filesystems(runner).erase_unfinished_xfs(disk.device)
    assert "wipefs" not in runner.programs()
    assert disk.checksum() == before


def test_what_is_mounted_is_refused(make_disk: Callable[..., Any], workdir: Path, mounter: Mounter) -> None:
    disk, place = make_disk(400 * MIB), workdir / "mounted"
    place.mkdir()
    run(["mkfs.xfs", "-q", disk.device], timeout=60)
    mounter.mount(disk.device, place, "xfs")
    with pytest.raises(DeviceUnclear, match="in use"):
        Filesystems(run).erase_unfinished_xfs(disk.device)
    mounter.unmount(place)


def test_an_error_of_the_device_is_said(unfinished: Any, runner: Any) -> None:
    def fail(argv: Any, **_: Any) -> Any:
        raise ProcessError(argv, "exit code 1: Input/output error", exit_code=1)

    runner.instead["wipefs"] = fail
    before = unfinished.checksum()
    with pytest.raises(DeviceUnclear, match=r"Input/output error.*what serves"):
        Filesystems(runner).erase_unfinished_xfs(unfinished.device)
    with pytest.raises(DeviceUnclear, match="No such file"):
        Filesystems(runner).erase_unfinished_xfs("/dev/loop-absent")
    assert unfinished.checksum() == before


def test_a_device_that_stops_answering_is_given_up_in_time(unfinished: Any, runner: Any) -> None:
    limits = []

    def hang(argv: Any, *, timeout: float, **_: Any) -> Any:
        limits.append(timeout)
        raise ProcessTimeout(argv, "did not end")

    runner.instead["wipefs"] = hang
    with pytest.raises(ProcessTimeout):
        Filesystems(runner).erase_unfinished_xfs(unfinished.device)
    assert 0 < limits[0] <= 60


def test_a_device_that_is_silent_is_not_waited_for(fuse_file: Any, runner: Any) -> None:
    class Hasty(Patience):
        """Waits for a moment only."""

        def look(self, device: Any, action: Callable[[], Any], *, at_most: float) -> Any:
            assert at_most <= 60
            return super().look(device, action, at_most=0.3)

    fuse_file.stop()
    with pytest.raises(DeviceSilent) as caught:
        Filesystems(runner, patience=Hasty()).erase_unfinished_xfs(fuse_file.path)
    assert isinstance(caught.value, Unavailable)
    assert runner.started == []
