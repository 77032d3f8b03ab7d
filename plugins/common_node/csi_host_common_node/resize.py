"""Growing a filesystem to the size of its device."""

import fcntl
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from csi_host.errors import FailedPrecondition
from csi_host.node.devices import is_read_only, size_bytes
from csi_host.node.mounts import Mount, StrPath, mount_at, mounts_of_device
from csi_host.process import Runner
from csi_host_common_node.filesystem import Blank, Filesystems, Has
from csi_host_common_node.programs import require

_CHANGE_SECONDS = 3600.0
_REPAIRED_AT_MOST = 3
_CAP_SYS_RESOURCE = 24
_EXT_TYPES: Final = ("ext3", "ext4")
_EXT_SUPERBLOCK_OFFSET = 1024
_EXT_64BIT = 0x80
# XFS_IOC_FSGEOMETRY_V1, whose answer has 112 bytes.
_XFS_GEOMETRY = 0x80705864
_XFS_GEOMETRY_BYTES = 112


@dataclass(frozen=True, kw_only=True)
class _Geometry:
    """A filesystem's size in blocks, its block's in bytes, and the fewest blocks that it can grow by."""

    blocks: int
    block_bytes: int
    least_growth_blocks: int = 1


def effective_capabilities() -> int:
    """Return the capabilities of this process as the bits of capabilities(7)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


class Grower:
    """Grows ext3, ext4 and xfs: what is mounted online, an ext that is not mounted offline.

    The filesystem's type comes from its superblock, whether and where it is mounted from mountinfo.
    """

    def __init__(self, run: Runner, *, capabilities: Callable[[], int] = effective_capabilities) -> None:
        self._run = run
        self._filesystems = Filesystems(run)
        self._capabilities = capabilities

    def needs_growing(self, device: StrPath, mount_point: StrPath | None = None) -> bool:
        """Tell whether the device has more blocks than its filesystem, so many that it can use them.

        False for a read-only device or mount, and for an xfs that is not mounted, as it cannot grow now. Raises
        FailedPrecondition when there is no filesystem that can grow.
        """
        fs_type = self._fs_type(device)
        mount = _mount_of(device, mount_point)
        if is_read_only(device) or (mount is not None and mount.is_read_only):
            return False
        if fs_type == "xfs" and mount is None:
            return False
        found = _ext_geometry(device) if fs_type in _EXT_TYPES else _xfs_geometry(mount)
        return size_bytes(device) // found.block_bytes >= found.blocks + found.least_growth_blocks

    def grow(self, device: StrPath, mount_point: StrPath | None = None) -> None:
        """Grow the filesystem to the size of its device; nothing happens when it has it, or is read-only.

        Raises FailedPrecondition when this process may not grow a mounted ext (CAP_SYS_RESOURCE), and ProcessError.
        """
        if not self.needs_growing(device, mount_point):
            return
        fs_type = self._fs_type(device)
        mount = _mount_of(device, mount_point)
        if fs_type == "xfs" and mount is not None:
            require(["xfs_growfs"])
            self._run(["xfs_growfs", "-d", mount.mount_point], timeout=_CHANGE_SECONDS)
        elif mount is None:
            self._grow_ext_offline(device)
        else:
            self._grow_ext_online(device, fs_type)

    def _grow_ext_online(self, device: StrPath, fs_type: str) -> None:
        # The kernel asks for it in EXT4_IOC_RESIZE_FS and answers EPERM, which resize2fs does not explain.
        if not self._capabilities() >> _CAP_SYS_RESOURCE & 1:
            raise FailedPrecondition(
                f"growing a mounted {fs_type} needs CAP_SYS_RESOURCE, which this process does not have; "
                f"{os.fspath(device)} has its new size, its filesystem grows when the volume is staged next"
            )
        require(["resize2fs"])
        self._run(["resize2fs", "--", os.fspath(device)], timeout=_CHANGE_SECONDS)

    def _grow_ext_offline(self, device: StrPath) -> None:
        require(["e2fsck", "resize2fs"])
        # resize2fs works on a filesystem only that was checked in full since it was last mounted.
        check = ["e2fsck", "-f", "-p", "--", os.fspath(device)]
        self._run(check, timeout=_CHANGE_SECONDS, ok_codes=range(_REPAIRED_AT_MOST + 1))
        self._run(["resize2fs", "--", os.fspath(device)], timeout=_CHANGE_SECONDS)

    def _fs_type(self, device: StrPath) -> str:
        content = self._filesystems.content_of(device)
        if isinstance(content, Has) and content.kind in (*_EXT_TYPES, "xfs"):
            return content.kind
        what = "no filesystem" if isinstance(content, Blank) else content.kind
        raise FailedPrecondition(f"{os.fspath(device)} holds {what}; ext3, ext4 and xfs can be grown")


def _mount_of(device: StrPath, mount_point: StrPath | None) -> Mount | None:
    """Return the mount through which the filesystem grows: a writable one, if there is any."""
    on_device = [mount for mount in mounts_of_device(device) if mount.fs_type in (*_EXT_TYPES, "xfs")]
    if mount_point is not None and (mount := mount_at(mount_point)) is not None:
        if mount not in on_device:
            raise FailedPrecondition(f"{mount.mount_point} shows {mount.source}, not {os.fspath(device)}")
        return mount
    return min(on_device, key=lambda mount: mount.is_read_only, default=None)


def _ext_geometry(device: StrPath) -> _Geometry:
    # Through the page cache, which a mounted ext4 shares: what the kernel has changed is seen at once.
    descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        block = os.pread(descriptor, 1024, _EXT_SUPERBLOCK_OFFSET)
    finally:
        os.close(descriptor)
    count_low, first, shift, group_blocks, group_inodes = struct.unpack_from("<4x I 12x I I 4x I 4x I", block)
    (inode_bytes,) = struct.unpack_from("<H", block, 0x58)
    (incompatible,) = struct.unpack_from("<I", block, 0x60)
    (count_high,) = struct.unpack_from("<I", block, 0x150)
    blocks = count_low | (count_high << 32 if incompatible & _EXT_64BIT else 0)
    block_bytes = 1024 << shift
    # resize2fs begins a new group only if 50 blocks are left of it beside its bitmaps and inode table; without this
    # a device of an odd size would be checked in full, in vain, each time it is staged.
    is_group_full = (blocks - first) % group_blocks == 0
    least = 50 + 2 + group_inodes * inode_bytes // block_bytes if is_group_full else 1
    return _Geometry(blocks=blocks, block_bytes=block_bytes, least_growth_blocks=least)


def _xfs_geometry(mount: Mount | None) -> _Geometry:
    if mount is None:
        raise FailedPrecondition("an xfs that is not mounted does not tell its size")
    # The superblock on the device lags behind the log; the kernel's own geometry does not.
    descriptor = os.open(mount.mount_point, os.O_RDONLY | os.O_CLOEXEC)
    try:
        geometry = fcntl.ioctl(descriptor, _XFS_GEOMETRY, bytes(_XFS_GEOMETRY_BYTES))
    finally:
        os.close(descriptor)
    block_bytes, blocks = struct.unpack_from("=I 28x Q", geometry)
    return _Geometry(blocks=blocks, block_bytes=block_bytes)
