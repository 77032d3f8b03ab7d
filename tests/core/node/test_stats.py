import errno
import fcntl
import os
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from csi_host.errors import NotFound
from csi_host.node.devices import size_bytes
from csi_host.node.mounts import mount_at
from csi_host.node.stats import Usage, filesystem_stats, volume_stats

MIB = 1024**2
EXT4_IOC_SHUTDOWN = 0x8004587D
XFS_IOC_GOINGDOWN = 0x8004587D
NO_LOG_FLUSH = 2


def test_a_filesystem_is_counted_as_df_counts(make_volume: Callable[..., Any]) -> None:
    volume = make_volume()
    (volume.path / "file").write_bytes(bytes(3 * MIB))
    stats = volume_stats(volume.path)
    df = subprocess.check_output(
        ["df", "--block-size=1", "--output=size,used,avail,itotal,iused,iavail", volume.path], text=True
    )
    total, used, available, inodes, inodes_used, inodes_free = map(int, df.splitlines()[1].split())
    assert stats.bytes == Usage(total=total, used=used, available=available)
    assert stats.inodes == Usage(total=inodes, used=inodes_used, available=inodes_free)
    assert not stats.abnormal
    assert stats.message == "the volume is in a healthy condition"


def test_a_bind_mount_is_a_volume(
    make_volume: Callable[..., Any], workdir: Path, bind: Callable[[Path, Path], None]
) -> None:
    volume = make_volume()
    (workdir / "target").mkdir()
    bind(volume.path, workdir / "target")
    assert volume_stats(workdir / "target") == volume_stats(volume.path)


def test_a_block_device_knows_its_size(
    make_volume: Callable[..., Any], workdir: Path, bind: Callable[[Path, Path], None]
) -> None:
    volume = make_volume(size=33 * MIB)
    (workdir / "node").touch()
    bind(Path(volume.device), workdir / "node")
    stats = volume_stats(workdir / "node")
    assert stats.bytes == Usage(total=33 * MIB, used=0, available=0)
    assert stats.inodes is None
    assert not stats.abnormal
    assert size_bytes(volume.device) == 33 * MIB


@pytest.mark.parametrize("path", ["absent", "directory", "file", "file/below", "n" * 300, "loop", "link"])
def test_where_nothing_is_mounted_is_no_volume(workdir: Path, path: str) -> None:
    (workdir / "directory").mkdir()
    (workdir / "file").touch()
    (workdir / "loop").symlink_to("loop")
    (workdir / "link").symlink_to("/proc")
    with pytest.raises(NotFound, match="volume_path"):
        volume_stats(workdir / path)


def test_a_relative_path_that_is_nowhere_is_no_volume() -> None:
    with pytest.raises(NotFound):
        volume_stats("some/path")


def test_a_directory_inside_a_volume_is_no_volume(make_volume: Callable[..., Any]) -> None:
    with pytest.raises(NotFound):
        volume_stats(make_volume().path / "lost+found")


def test_a_deleted_source_is_abnormal(workdir: Path, bind: Callable[[Path, Path], None]) -> None:
    (workdir / "source").mkdir()
    (workdir / "target").mkdir()
    bind(workdir / "source", workdir / "target")
    (workdir / "source").rmdir()
    stats = volume_stats(workdir / "target")
    assert stats.abnormal
    assert "deleted" in stats.message


def test_a_volume_mounted_read_only_is_healthy(make_volume: Callable[..., Any]) -> None:
    assert not volume_stats(make_volume(options="ro").path).abnormal


def test_a_filesystem_that_stopped_writing_after_an_error_is_abnormal(make_volume: Callable[..., Any]) -> None:
    volume = make_volume(options="errors=remount-ro")
    assert not volume_stats(volume.path).abnormal
    Path("/sys/fs/ext4", Path(volume.device).name, "trigger_fs_error").write_text("a test's error")
    with pytest.raises(OSError, match="Read-only"):
        (volume.path / "file").touch()
    stats = volume_stats(volume.path)
    assert stats.abnormal
    assert "error" in stats.message
    assert stats.bytes is not None


def test_a_filesystem_made_read_only_behind_its_mount_is_abnormal(
    make_volume: Callable[..., Any], workdir: Path, bind: Callable[[Path, Path], None]
) -> None:
    volume = make_volume()
    (workdir / "target").mkdir()
    bind(volume.path, workdir / "target")
    # What kernels without emergency_ro show after an error: the filesystem is read-only, this mount says rw.
    subprocess.run(["mount", "-o", "remount,ro", volume.path], check=True)
    stats = volume_stats(workdir / "target")
    assert stats.abnormal
    assert "read-only" in stats.message


@pytest.mark.parametrize(("fs_type", "size"), [("ext4", 32 * MIB), ("xfs", 320 * MIB)])
def test_a_filesystem_that_was_shut_down_is_abnormal(make_volume: Callable[..., Any], fs_type: str, size: int) -> None:
    volume = make_volume(fs_type=fs_type, size=size)
    descriptor = os.open(volume.path, os.O_RDONLY)
    try:
        fcntl.ioctl(descriptor, EXT4_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
    finally:
        os.close(descriptor)
    assert volume_stats(volume.path).abnormal


def test_a_dead_fuse_mount_is_abnormal(workdir: Path) -> None:
    content, path = workdir / "content", workdir / "exported"
    with content.open("wb") as file:
        file.truncate(MIB)
    path.touch()
    daemon = subprocess.Popen(
        [
            *("qemu-storage-daemon", "--blockdev", f"driver=file,node-name=disk,filename={content}"),
            *("--export", f"type=fuse,id=export,node-name=disk,mountpoint={path}"),
        ]
    )
    until = time.monotonic() + 20
    while mount_at(path) is None and time.monotonic() < until:
        time.sleep(0.02)
    daemon.kill()
    daemon.wait()
    stats = volume_stats(path)
    assert stats.abnormal
    assert os.strerror(errno.ENOTCONN) in stats.message
    subprocess.run(["umount", "--no-canonicalize", path], check=True)


def test_free_space_beyond_the_total_is_not_negative_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    # A filesystem's answer, as a remote one can give it.
    def statvfs(_: Any) -> os.statvfs_result:
        return os.statvfs_result((4096, 4096, 10, 12, -1, 0, 0, 0, 0, 255))

    monkeypatch.setattr(os, "statvfs", statvfs)
    stats = filesystem_stats("/")
    assert stats.bytes == Usage(total=40960, used=0, available=0)
    assert stats.inodes == Usage(total=0, used=0, available=0)
