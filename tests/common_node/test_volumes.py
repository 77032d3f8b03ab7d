import stat
from pathlib import Path
from typing import Any

import pytest

from csi_host.errors import FailedPrecondition
from csi_host.node.mounts import is_mount_point, mount_at
from csi_host.process import ProcessError, run
from csi_host.testing.device_nodes import another_node
from csi_host_common_node.filesystem import Filesystems
from csi_host_common_node.mounter import MountBusy, Mounter, MountFailed
from csi_host_common_node.volumes import (
    NotStaged,
    TargetInUse,
    other_targets,
    publish_block,
    publish_filesystem,
    unpublish,
)


def test_publishing_makes_the_last_part_of_the_target_and_unpublishing_removes_it(
    staged: Path, workdir: Path, mounter: Mounter
) -> None:
    target = workdir / "target"
    publish_filesystem(mounter, staged, target, ["noatime", "discard"])
    (target / "file").write_text("written")
    assert (staged / "file").read_text() == "written"
    unpublish(mounter, target)
    assert not target.exists()
    assert (staged / "file").read_text() == "written"
    unpublish(mounter, target)


def test_a_new_target_is_not_for_everybody(staged: Path, workdir: Path, runner: Any) -> None:
    modes = []

    def look_first(argv: Any, **how: Any) -> Any:
        modes.append(stat.S_IMODE((workdir / "target").stat().st_mode))
        return run(argv, **how)

    runner.instead["mount"] = look_first
    publish_filesystem(Mounter(runner), staged, workdir / "target")
    unpublish(Mounter(runner), workdir / "target")
    assert modes == [0o750]


@pytest.mark.parametrize("read_only", [False, True])
def test_publishing_again_in_the_same_way_does_nothing(
    staged: Path, workdir: Path, runner: Any, read_only: bool
) -> None:
    mounter = Mounter(runner)
    publish_filesystem(mounter, staged, workdir / "target", read_only=read_only)
    first = list(runner.started)
    publish_filesystem(mounter, staged, workdir / "target", read_only=read_only)
    assert runner.started == first
    mount = mount_at(workdir / "target")
    assert mount is not None
    assert mount.is_read_only == read_only
    unpublish(mounter, workdir / "target")


def test_publishing_again_in_another_way_is_refused_either_way(staged: Path, workdir: Path, mounter: Mounter) -> None:
    publish_filesystem(mounter, staged, workdir / "writable")
    publish_filesystem(mounter, staged, workdir / "readable", ["ro"])
    with pytest.raises(TargetInUse, match="for writing"):
        publish_filesystem(mounter, staged, workdir / "writable", read_only=True)
    with pytest.raises(TargetInUse, match="read-only"):
        publish_filesystem(mounter, staged, workdir / "readable")
    unpublish(mounter, workdir / "writable")
    unpublish(mounter, workdir / "readable")


def test_a_target_with_another_volume_is_refused(staged: Path, make_disk: Any, workdir: Path, mounter: Mounter) -> None:
    other = make_disk()
    Filesystems(run).format(other.device, "ext4")
    (workdir / "other").mkdir()
    mounter.mount(other.device, workdir / "other", "ext4")
    publish_filesystem(mounter, workdir / "other", workdir / "target")
    with pytest.raises(TargetInUse, match=other.device):
        publish_filesystem(mounter, staged, workdir / "target")
    unpublish(mounter, workdir / "target")
    mounter.unmount(workdir / "other")


def test_a_volume_that_is_not_staged_is_not_published(workdir: Path, mounter: Mounter) -> None:
    (workdir / "plain").mkdir()
    with pytest.raises(NotStaged, match="stage the volume first"):
        publish_filesystem(mounter, workdir / "plain", workdir / "target")
    with pytest.raises(NotStaged, match="stage the volume first"):
        publish_block(mounter, workdir / "absent", workdir / "target")
    (workdir / "file").touch()
    with pytest.raises(NotStaged):
        publish_block(mounter, workdir / "file", workdir / "target")
    assert not (workdir / "target").exists()


def test_a_failed_publish_leaves_no_target_but_keeps_one_that_was_there(
    staged: Path, workdir: Path, runner: Any
) -> None:
    def fail(argv: Any, **_: Any) -> Any:
        raise ProcessError(argv, "exit code 32: no", exit_code=32)

    runner.instead["mount"] = fail
    (workdir / "existing").mkdir()
    for name in ("new", "existing"):
        with pytest.raises(MountFailed):
            publish_filesystem(Mounter(runner), staged, workdir / name)
    assert not (workdir / "new").exists()
    assert (workdir / "existing").is_dir()


def test_content_in_an_unmounted_target_is_neither_hidden_nor_removed(
    staged: Path, workdir: Path, mounter: Mounter
) -> None:
    (workdir / "target").mkdir()
    (workdir / "target/file").write_text("somebody's")
    with pytest.raises(FailedPrecondition, match="file"):
        publish_filesystem(mounter, staged, workdir / "target")
    with pytest.raises(FailedPrecondition, match="file"):
        unpublish(mounter, workdir / "target")
    assert (workdir / "target/file").read_text() == "somebody's"
    (workdir / "full").write_text("somebody's")
    with pytest.raises(FailedPrecondition):
        unpublish(mounter, workdir / "full")
    assert (workdir / "full").read_text() == "somebody's"


def test_a_link_as_target_is_left_alone(staged: Path, workdir: Path, mounter: Mounter) -> None:
    (workdir / "link").symlink_to(staged)
    with pytest.raises(FailedPrecondition):
        publish_filesystem(mounter, staged, workdir / "link")
    with pytest.raises(FailedPrecondition):
        unpublish(mounter, workdir / "link")
    assert is_mount_point(staged)
    assert (workdir / "link").is_symlink()


def test_a_missing_parent_is_named(staged: Path, workdir: Path, mounter: Mounter) -> None:
    with pytest.raises(FailedPrecondition, match=str(workdir / "absent")):
        publish_filesystem(mounter, staged, workdir / "absent/target")
    unpublish(mounter, workdir / "absent/target")


def test_unpublishing_a_busy_target_keeps_it(staged: Path, workdir: Path, mounter: Mounter) -> None:
    publish_filesystem(mounter, staged, workdir / "target")
    with (workdir / "target/file").open("w"), pytest.raises(MountBusy):
        unpublish(mounter, workdir / "target")
    assert is_mount_point(workdir / "target")
    unpublish(mounter, workdir / "target")


def test_unpublishing_a_plain_empty_directory_after_a_reboot_removes_it(workdir: Path, mounter: Mounter) -> None:
    (workdir / "target").mkdir()
    (workdir / "block target").touch()
    unpublish(mounter, workdir / "target")
    unpublish(mounter, workdir / "block target")
    assert list(workdir.iterdir()) == []


@pytest.mark.parametrize("is_read_only", [False, True])
def test_a_block_device_is_published_from_its_staged_file_and_removed(
    disk: Any, workdir: Path, mounter: Mounter, is_read_only: bool
) -> None:
    staged, target = workdir / "staged block", workdir / "target"
    staged.touch()
    mounter.bind(disk.device, staged)
    for _ in range(2):
        publish_block(mounter, staged, target, is_read_only)
    publish_block(mounter, disk.device, target, is_read_only)
    assert target.is_block_device()
    assert target.stat().st_rdev == Path(disk.device).stat().st_rdev
    mount = mount_at(target)
    assert mount is not None
    assert mount.is_read_only == is_read_only
    assert other_targets(disk.device, target) == [str(staged)]
    unpublish(mounter, target)
    assert not target.exists()
    mounter.unmount(staged)


def test_a_device_is_the_same_by_whatever_name_it_was_published(disk: Any, workdir: Path, runner: Any) -> None:
    mounter, staged, target = Mounter(runner), workdir / "staged", workdir / "target"
    staged.touch()
    mounter.bind(disk.device, staged)
    with another_node(disk.device) as node:
        publish_block(mounter, node, target)
    first = list(runner.started)
    publish_block(mounter, staged, target)
    assert runner.started == first
    with pytest.raises(TargetInUse, match="for writing"):
        publish_block(mounter, staged, target, read_only=True)
    assert other_targets(staged, workdir / "second") == [str(target)]
    unpublish(mounter, target)
    mounter.unmount(staged)


def test_another_device_at_a_block_target_is_refused(make_disk: Any, workdir: Path, mounter: Mounter) -> None:
    publish_block(mounter, make_disk().device, workdir / "target")
    with pytest.raises(TargetInUse):
        publish_block(mounter, make_disk().device, workdir / "target")
    unpublish(mounter, workdir / "target")


def test_a_second_target_of_a_volume_is_found(staged: Path, workdir: Path, mounter: Mounter) -> None:
    assert other_targets(staged, workdir / "second") == []
    publish_filesystem(mounter, staged, workdir / "first")
    assert other_targets(staged, workdir / "first") == []
    assert other_targets(staged, workdir / "second") == [str(workdir / "first")]
    unpublish(mounter, workdir / "first")


def test_kubelets_own_mount_of_a_block_volume_is_no_second_target(disk: Any, workdir: Path, mounter: Mounter) -> None:
    devices = workdir / "plugins/kubernetes.io/csi/volumeDevices"
    published, mapped, elsewhere = places = [
        devices / name for name in ("publish/pv-1/uid-1", "pv-1/dev/uid-1", "pv-2/dev/uid-1")
    ]
    for place in places:
        place.parent.mkdir(parents=True)
    publish_block(mounter, disk.device, published)
    for place in (mapped, elsewhere):
        place.touch()
        mounter.bind(published, place)
    another = published.with_name("uid-2")
    assert other_targets(disk.device, published) == [str(elsewhere)]
    assert other_targets(disk.device, another) == sorted([str(elsewhere), str(published)])
    # Whose target is no kubelet's has no mounts of kubelet's.
    assert other_targets(disk.device, workdir / "target") == sorted(map(str, places))
    for place in places:
        unpublish(mounter, place)
