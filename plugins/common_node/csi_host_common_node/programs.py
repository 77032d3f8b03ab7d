"""The programs this package starts, and the Debian packages they come from."""

import shutil
from collections.abc import Callable, Iterable
from typing import Final

from csi_host.errors import FailedPrecondition

PACKAGES: Final = {
    "blkid": "util-linux",
    "blockdev": "util-linux",
    "btrfs": "btrfs-progs",
    "ceph": "ceph-common",
    "ceph-authtool": "ceph-common",
    "ceph-mgr": "ceph-mgr",
    "ceph-mon": "ceph-mon",
    "ceph-osd": "ceph-osd",
    "cryptsetup": "cryptsetup-bin",
    "dumpe2fs": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "fsck": "util-linux",
    "fusermount3": "fuse3",
    "losetup": "mount",
    "mkfs.btrfs": "btrfs-progs",
    "mkfs.ext3": "e2fsprogs",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "modprobe": "kmod",
    "monmaptool": "ceph-common",
    "mount": "mount",
    "nsenter": "util-linux",
    "qemu-img": "qemu-utils",
    "qemu-storage-daemon": "qemu-system-common",
    "rbd": "ceph-common",
    "rbd-nbd": "rbd-nbd",
    "resize2fs": "e2fsprogs",
    "stat": "coreutils",
    "tee": "coreutils",
    "umount": "mount",
    "wipefs": "util-linux",
    "xfs_growfs": "xfsprogs",
}

_FOR_FILESYSTEM: Final = {
    "btrfs": ("mkfs.btrfs", "btrfs"),
    "ext3": ("mkfs.ext3", "e2fsck", "resize2fs"),
    "ext4": ("mkfs.ext4", "e2fsck", "resize2fs"),
    "xfs": ("mkfs.xfs", "xfs_growfs"),
}


class ProgramMissing(FailedPrecondition):
    """A program that a step needs is not installed; the message names it and its Debian package."""


def require(names: Iterable[str], *, find: Callable[[str], str | None] = shutil.which) -> None:
    """Raise ProgramMissing naming every program of ``names`` that is not on the path, before anything is touched."""
    if missing := [_with_package(name) for name in names if find(name) is None]:
        raise ProgramMissing(f"not installed on this node: {', '.join(missing)}")


def needed_for(fs_type: str) -> tuple[str, ...]:
    """Return the programs that formatting, checking, mounting and growing a filesystem of this type can need."""
    return ("blkid", *_FOR_FILESYSTEM.get(fs_type, ()), "mount", "umount")


def _with_package(name: str) -> str:
    package = PACKAGES.get(name)
    return f"{name} (Debian package {package})" if package else name
