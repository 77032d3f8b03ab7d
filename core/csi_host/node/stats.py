"""How full a volume is and whether it is well."""

import errno
import os
import stat
from dataclasses import dataclass, replace
from pathlib import Path

from csi_host.errors import NotFound
from csi_host.node.devices import size_bytes
from csi_host.node.mounts import Mount, StrPath, mount_at

# A path that cannot exist, as opposed to one that exists and does not answer.
_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP}
# ext4 (Linux 6.12 and later) shows these after an error or a forced shutdown, while "rw" stays in place.
_STOPPED = {"emergency_ro", "shutdown"}


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Amounts of one unit (bytes or inodes); none is negative."""

    total: int
    used: int
    available: int


@dataclass(frozen=True, kw_only=True)
class VolumeStats:
    """What NodeGetVolumeStats answers: ``bytes`` (a block device knows its total only), ``inodes`` of a filesystem.

    ``bytes`` and ``inodes`` are None where they could not be read; ``abnormal`` then says so and ``message`` why.
    """

    bytes: Usage | None = None
    inodes: Usage | None = None
    abnormal: bool = False
    message: str = "the volume is in a healthy condition"


def volume_stats(path: StrPath) -> VolumeStats:
    """Return usage and condition of the filesystem mounted at ``path``, or of the block device it is.

    A mount that answers with an error is abnormal, not an error. A dead mount may hang this call: GuardedStats.
    Raises NotFound when the path is missing, or is a directory or file with nothing mounted on it.
    """
    mount = mount_at(path)
    try:
        mode = Path(path).stat().st_mode
        if stat.S_ISBLK(mode):
            return block_stats(path)
        if mount is None or not stat.S_ISDIR(mode):
            raise NotFound(f"volume_path: no volume is mounted at {os.fspath(path)}")
        return _with_condition(filesystem_stats(path), mount)
    except OSError as error:
        if error.errno in _ABSENT and mount is None:
            raise NotFound(f"volume_path: {os.fspath(path)} does not exist") from error
        return VolumeStats(abnormal=True, message=f"{os.fspath(path)} cannot be read: {error.strerror}")


def filesystem_stats(path: StrPath) -> VolumeStats:
    """Return bytes and inodes of the filesystem that holds ``path``, counted as df counts them; raises OSError.

    ``available`` is what an unprivileged user may take; ``used`` plus ``available`` is less than ``total`` where the
    filesystem keeps a reserve.
    """
    found = os.statvfs(path)
    unit = found.f_frsize
    return VolumeStats(
        bytes=_usage(found.f_blocks * unit, found.f_bfree * unit, found.f_bavail * unit),
        inodes=_usage(found.f_files, found.f_ffree, found.f_ffree),
    )


def block_stats(path: StrPath) -> VolumeStats:
    """Return the size of the block device at ``path``; what is used of it nobody knows. Raises OSError."""
    return VolumeStats(bytes=Usage(total=size_bytes(path), used=0, available=0))


def _usage(total: int, free: int, available: int) -> Usage:
    # Network filesystems have been seen to report more free than there is.
    return Usage(total=max(total, 0), used=max(total - free, 0), available=max(available, 0))


def _with_condition(stats: VolumeStats, mount: Mount) -> VolumeStats:
    if mount.is_deleted:
        return replace(stats, abnormal=True, message=f"the directory mounted at {mount.mount_point} was deleted")
    if stopped := _STOPPED.intersection(mount.super_options):
        why = f"the filesystem stopped taking writes after an error ({', '.join(sorted(stopped))})"
        return replace(stats, abnormal=True, message=why)
    # A filesystem mounted read-only has "ro" in both places; only one that turned read-only later has it in one.
    if "rw" in mount.options and "ro" in mount.super_options:
        why = "the filesystem was mounted for writing and has become read-only, as it does after an error"
        return replace(stats, abnormal=True, message=why)
    return stats
