"""What e2fsck says before a mount: damage is refused, and where it cannot look the mount decides."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from csi_host.process import ProcessError, run
from csi_host.testing.namespaces import other_mount_namespace
from csi_host_common_node.filesystem import FilesystemDamaged, Filesystems
from csi_host_common_node.mounter import Mounter


def ends_with(exit_code: int) -> Callable[..., Any]:
    def end(argv: Any, **_: Any) -> Any:
        raise ProcessError(argv, f"exit code {exit_code}: words", exit_code=exit_code)

    return end


def test_a_filesystem_that_another_container_has_mounted_is_mounted_unchecked(
    disk: Any, workdir: Path, mounter: Mounter, caplog: pytest.LogCaptureFixture
) -> None:
    filesystems = Filesystems(run)
    filesystems.format(disk.device, "ext4")
    assert filesystems.check(disk.device, "ext4")
    place = workdir / "mounted"
    place.mkdir()
    with other_mount_namespace() as run_there:
        run_there("mount", disk.device, str(place))
        with caplog.at_level(logging.WARNING):
            assert not filesystems.check(disk.device, "ext4")
        mounter.mount(disk.device, place, "ext4")
        (place / "file").write_text("data")
        mounter.unmount(place)
    assert disk.device in caplog.text
    assert "not checked" in caplog.text


@pytest.mark.parametrize("exit_code", [8, 9, 16, 128])
def test_an_e2fsck_that_cannot_look_says_nothing_against_the_mount(runner: Any, exit_code: int) -> None:
    runner.instead["e2fsck"] = ends_with(exit_code)
    assert not Filesystems(runner).check("/dev/loop900", "ext4")


@pytest.mark.parametrize("exit_code", [4, 5, 12])
def test_errors_that_were_left_are_refused(runner: Any, exit_code: int) -> None:
    runner.instead["e2fsck"] = ends_with(exit_code)
    with pytest.raises(FilesystemDamaged, match="by hand"):
        Filesystems(runner).check("/dev/loop900", "ext4")


@pytest.mark.parametrize("exit_code", [-9, 32, 33])
def test_an_e2fsck_that_was_ended_says_nothing_for_the_mount(runner: Any, exit_code: int) -> None:
    runner.instead["e2fsck"] = ends_with(exit_code)
    with pytest.raises(ProcessError):
        Filesystems(runner).check("/dev/loop900", "ext4")


@pytest.mark.parametrize("fs_type", ["xfs", "btrfs"])
def test_what_replays_its_own_log_needs_no_check(runner: Any, fs_type: str) -> None:
    assert Filesystems(runner).check("/dev/loop900", fs_type)
    assert runner.started == []
