"""How big a filesystem is, as it says itself: what is mounted is asked of the kernel, an ext of its superblock."""

import fcntl
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from csi_host.errors import FailedPrecondition
from csi_host.node.mounts import Mount, StrPath

EXT_TYPES: Final = ("ext3", "ext4")
_EXT_SUPERBLOCK_OFFSET = 1024
_EXT_64BIT = 0x80
# XFS_IOC_FSGEOMETRY_V1, whose answer has 112 bytes.
_XFS_GEOMETRY = 0x80705864
_XFS_GEOMETRY_BYTES = 112
# BTRFS_IOC_FS_INFO and BTRFS_IOC_DEV_INFO with the sizes of what they exchange.
_BTRFS_FILESYSTEM = 0x8400941F
_BTRFS_FILESYSTEM_BYTES = 1024
_BTRFS_DEVICE = 0xD000941E
_BTRFS_DEVICE_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """A filesystem's size in blocks, its block's in bytes, and the fewest blocks that it can grow by."""

    blocks: int
    block_bytes: int
    least_growth_blocks: int = 1


def geometry_of(fs_type: str, device: StrPath, mount: Mount | None) -> Geometry:
    """Return the size of the filesystem of a type that can grow; may hang with its device.

    Raises FailedPrecondition for an xfs or btrfs that is not mounted, which does not tell, and OSError.
    """
    if fs_type in EXT_TYPES:
        return _ext_geometry(device)
    if mount is None:
        raise FailedPrecondition(f"a {fs_type} that is not mounted does not tell its size")
    return _asked(mount, _xfs_geometry if fs_type == "xfs" else _btrfs_geometry)


def _ext_geometry(device: StrPath) -> Geometry:
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
    return Geometry(blocks=blocks, block_bytes=block_bytes, least_growth_blocks=least)


def _asked(mount: Mount, ask: Callable[[int], Geometry]) -> Geometry:
    # The superblock on the device lags behind the log; the kernel's own geometry does not.
    descriptor = os.open(mount.mount_point, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return ask(descriptor)
    finally:
        os.close(descriptor)


def _xfs_geometry(descriptor: int) -> Geometry:
    geometry = fcntl.ioctl(descriptor, _XFS_GEOMETRY, bytes(_XFS_GEOMETRY_BYTES))
    block_bytes, blocks = struct.unpack_from("=I 28x Q", geometry)
    return Geometry(blocks=blocks, block_bytes=block_bytes)


def _btrfs_geometry(descriptor: int) -> Geometry:
    filesystem = bytearray(_BTRFS_FILESYSTEM_BYTES)
    fcntl.ioctl(descriptor, _BTRFS_FILESYSTEM, filesystem)
    device_id, devices, sector_bytes = struct.unpack_from("=Q Q 20x I", filesystem)
    if devices != 1:
        raise FailedPrecondition(f"this btrfs spans {devices} devices; a volume is one, so it is not grown")
    device = bytearray(_BTRFS_DEVICE_BYTES)
    struct.pack_into("=Q", device, 0, device_id)
    fcntl.ioctl(descriptor, _BTRFS_DEVICE, device)
    (size_bytes,) = struct.unpack_from("=32x Q", device)
    return Geometry(blocks=size_bytes // sector_bytes, block_bytes=sector_bytes)
