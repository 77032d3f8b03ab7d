import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from csi_host.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument
from csi_host.node.mounts import is_mount_point, location_of, mount_at
from csi_host.process import ProcessError, ProcessTimeout, run
from csi_host_common_node.filesystem import Filesystems
from csi_host_common_node.mounter import MountBusy, Mounter, MountFailed

AWKWARD_NAMES = ["plain", "-o bind", "with space", "tab\there", "new\nline", "back\\slash", "com,ma", "ünï", "#hash"]


@pytest.mark.parametrize("name", AWKWARD_NAMES)
def test_mounts_binds_and_unmounts_at_any_name(
    disk: Any, workdir: Path, mounter: Mounter, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    Filesystems(run).format(disk.device, "ext4")
    (workdir / name).mkdir()
    (workdir / f"{name}.bind").mkdir()
    monkeypatch.chdir(workdir)
    mounter.mount(disk.device, name, "ext4", ["noatime"])
    mounter.bind(name, f"{name}.bind", read_only=True)
    mounted, bound = mount_at(workdir / name), mount_at(workdir / f"{name}.bind")
    assert mounted is not None
    assert bound is not None
    assert (mounted.source, mounted.location) == (disk.device, bound.location)
    assert not mounted.is_read_only
    assert bound.is_read_only
    mounter.unmount(f"{name}.bind")
    mounter.unmount(name)
    assert not is_mount_point(workdir / name)


def test_a_bind_on_the_same_filesystem_is_a_mount_point_and_its_source_is_not(workdir: Path, mounter: Mounter) -> None:
    source, target = workdir / "source", workdir / "target"
    source.mkdir()
    target.mkdir()
    mounter.bind(source, target)
    assert source.stat().st_dev == target.stat().st_dev
    assert is_mount_point(target)
    assert not is_mount_point(source)
    assert location_of(source) == location_of(target)
    mounter.unmount(target)


def test_a_read_only_bind_refuses_writes_and_its_source_takes_them(
    staged: Path, workdir: Path, mounter: Mounter
) -> None:
    target = workdir / "target"
    target.mkdir()
    mounter.bind(staged, target, read_only=True)
    (staged / "file").write_text("written")
    assert (target / "file").read_text() == "written"
    with pytest.raises(OSError, match="Read-only"):
        (target / "other").touch()
    mounter.unmount(target)


def test_a_bind_that_cannot_become_read_only_is_undone(staged: Path, workdir: Path, runner: Any) -> None:
    def no_remount(argv: Any, **how: Any) -> Any:
        if any("remount" in word.split(",") for word in argv):
            raise ProcessError(argv, "exit code 32: no", exit_code=32)
        return run(argv, **how)

    runner.instead["mount"] = no_remount
    target = workdir / "target"
    target.mkdir()
    with pytest.raises(MountFailed):
        Mounter(runner).bind(staged, target, read_only=True)
    assert not is_mount_point(target)


def test_a_remount_that_claims_success_and_does_nothing_is_found_out(staged: Path, workdir: Path, runner: Any) -> None:
    def idle_remount(argv: Any, **how: Any) -> Any:
        return run(["true"] if any("remount" in word.split(",") for word in argv) else argv, **how)

    runner.instead["mount"] = idle_remount
    target = workdir / "target"
    target.mkdir()
    with pytest.raises(MountFailed, match="read-only"):
        Mounter(runner).bind(staged, target, read_only=True)
    assert not is_mount_point(target)


def test_options_of_the_filesystem_do_not_reach_a_bind_mount(staged: Path, workdir: Path, runner: Any) -> None:
    target = workdir / "target"
    target.mkdir()
    Mounter(runner).bind(staged, target, ["discard", "noexec", 'context="u:r:t:s0:c1,ro"', "noatime"])
    bound = mount_at(target)
    assert bound is not None
    assert {"noexec", "noatime", "rw"} <= set(bound.options)
    assert not any("discard" in word for argv in runner.started for word in argv)
    Mounter(runner).unmount(target)


def test_a_context_with_commas_stays_one_flag(disk: Any, workdir: Path, runner: Any) -> None:
    Filesystems(run).format(disk.device, "ext4")
    place = workdir / "mounted"
    place.mkdir()
    # Split at its comma, c2" would be an option of ext4 and the mount would fail.
    Mounter(runner).mount(disk.device, place, "ext4", ['context="system_u:object_r:x_t:s0:c1,c2"', "noatime"])
    assert 'context="system_u:object_r:x_t:s0:c1,c2",noatime' in runner.started[0]
    mounted = mount_at(place)
    assert mounted is not None
    assert "noatime" in mounted.options
    Mounter(runner).unmount(place)


@pytest.mark.parametrize("flag", ['context="open', "two\nlines"])
def test_a_flag_that_would_change_its_neighbours_is_refused(disk: Any, workdir: Path, runner: Any, flag: str) -> None:
    with pytest.raises(InvalidArgument, match="mount_flags"):
        Mounter(runner).mount(disk.device, workdir, "ext4", [flag, "ro"])
    assert runner.started == []


def test_a_failing_mount_leaves_nothing_and_says_why(disk: Any, workdir: Path, mounter: Mounter) -> None:
    place = workdir / "mounted"
    place.mkdir()
    with pytest.raises(MountFailed, match="wrong fs type"):
        mounter.mount(disk.device, place, "ext4")
    assert not is_mount_point(place)


def test_a_mount_program_that_fails_after_mounting_has_mounted(disk: Any, workdir: Path, runner: Any) -> None:
    Filesystems(run).format(disk.device, "ext4")

    def mount_then_fail(argv: Any, **how: Any) -> Any:
        run(argv, **how)
        raise ProcessError(argv, "exit code 16: cannot write utab", exit_code=16)

    runner.instead["mount"] = mount_then_fail
    place = workdir / "mounted"
    place.mkdir()
    Mounter(runner).mount(disk.device, place, "ext4")
    assert is_mount_point(place)
    Mounter(runner).unmount(place)


def test_a_mount_that_takes_too_long_is_not_final(disk: Any, workdir: Path, runner: Any) -> None:
    def hang(argv: Any, **_: Any) -> Any:
        raise ProcessTimeout(argv, "did not end and was killed")

    runner.instead["mount"] = hang
    place = workdir / "mounted"
    place.mkdir()
    with pytest.raises(ProcessTimeout) as late:
        Mounter(runner).mount(disk.device, place, "ext4")
    assert late.value.code is DeadlineExceeded.code


def test_a_device_that_turns_out_read_only_is_not_mounted_for_writing(
    disk: Any, workdir: Path, mounter: Mounter, read_only: Callable[[str], None]
) -> None:
    Filesystems(run).format(disk.device, "ext4")
    read_only(disk.device)
    place = workdir / "mounted"
    place.mkdir()
    with pytest.raises(FailedPrecondition, match="read-only"):
        mounter.mount(disk.device, place, "ext4")
    assert not is_mount_point(place)
    mounter.mount(disk.device, place, "ext4", ["ro"])
    mounter.unmount(place)


def test_nothing_is_mounted_over_a_mount_a_link_or_nothing(disk: Any, staged: Path, workdir: Path) -> None:
    mounter = Mounter(run)
    with pytest.raises(FailedPrecondition, match="mounted there already"):
        mounter.mount(disk.device, staged, "ext4")
    (workdir / "link").symlink_to("/etc")
    with pytest.raises(FailedPrecondition, match="symbolic link"):
        mounter.bind(staged, workdir / "link")
    with pytest.raises(FailedPrecondition, match="does not exist"):
        mounter.bind(staged, workdir / "absent")


def test_unmounting_what_is_not_mounted_is_fine(workdir: Path, runner: Any) -> None:
    Mounter(runner).unmount(workdir)
    Mounter(runner).unmount(workdir / "absent")
    assert runner.started == []


def test_unmounting_takes_every_mount_of_a_stack(staged: Path, workdir: Path, mounter: Mounter) -> None:
    place = workdir / "place"
    place.mkdir()
    for _ in range(3):
        subprocess.run(["mount", "--bind", staged, place], check=True)
    mounter.unmount(place)
    assert not is_mount_point(place)


def test_a_busy_mount_stays_and_its_users_are_named(staged: Path, mounter: Mounter) -> None:
    with (staged / "open file").open("w"), pytest.raises(MountBusy, match=rf"process {os.getpid()} \("):
        mounter.unmount(staged)
    assert is_mount_point(staged)


def test_a_mount_with_a_mount_inside_names_that(staged: Path, mounter: Mounter) -> None:
    inner = staged / "inner"
    inner.mkdir()
    mounter.bind(staged / "lost+found", inner)
    with pytest.raises(MountBusy, match=f"mount at {inner}"):
        mounter.unmount(staged)
    mounter.unmount(inner)


def test_a_mount_with_a_loop_device_inside_names_that(staged: Path, mounter: Mounter) -> None:
    (staged / "image").write_bytes(bytes(1024**2))
    device = run(["losetup", "--find", "--show", str(staged / "image")], timeout=10).stdout.strip()
    with pytest.raises(MountBusy, match=device):
        mounter.unmount(staged)
    run(["losetup", "--detach", device], timeout=10)


def _stat_for(path: Path, *, seconds: float) -> None:
    # The kernel gives a mount up a moment after its process is gone.
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        path.stat()


def test_a_dead_mount_is_seen_and_unmounted(fuse_file: Any, mounter: Mounter) -> None:
    fuse_file.kill()
    with pytest.raises(OSError, match="not connected"):
        _stat_for(fuse_file.path, seconds=10)
    assert is_mount_point(fuse_file.path)
    mounter.unmount(fuse_file.path)
    assert not is_mount_point(fuse_file.path)


def test_a_hanging_mount_is_seen_and_unmounted(fuse_file: Any, mounter: Mounter) -> None:
    fuse_file.stop()
    assert is_mount_point(fuse_file.path)
    mounter.unmount(fuse_file.path)
    assert not is_mount_point(fuse_file.path)


def test_a_program_that_is_not_installed_is_reported_as_missing(
    make_disk: Callable[..., Any], workdir: Path, runner: Any
) -> None:
    def missing(argv: Any, **_: Any) -> Any:
        raise ProcessError(argv, "cannot be started: No such file or directory")

    runner.instead["mount"] = missing
    with pytest.raises(ProcessError) as failed:
        Mounter(runner).mount(make_disk().device, workdir, "ext4")
    assert failed.value.is_missing
