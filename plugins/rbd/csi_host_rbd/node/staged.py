"""What a staging mount says of the volume that is mounted there."""

import os
from pathlib import Path

from csi_host.access import VolumeAccess
from csi_host.errors import AlreadyExists
from csi_host.node.mounts import Mount, split_options
from csi_host_rbd.node.selinux import other_context

FILESYSTEMS = frozenset({"btrfs", "ext3", "ext4", "xfs"})


def is_block(mount: Mount) -> bool:
    """Whether it is a block device's node that is mounted, and not a filesystem."""
    return mount.fs_type not in FILESYSTEMS


def device_of(mount: Mount) -> str:
    """Return the device below a staging mount: of a block volume its node is what is mounted."""
    if is_block(mount):
        return f"/dev/{Path(mount.root).name}"
    if mount.fs_type == "btrfs":
        # The number that its mounts show is no device's.
        return os.path.realpath(mount.source)
    return f"/dev/{Path('/sys/dev/block', mount.device).resolve().name}"


def wants_read_only(access: VolumeAccess) -> bool:
    """Whether nobody is going to write through this use of a volume."""
    return access.mode.is_reader_only or "ro" in _options(access)


def refuse_otherwise(mount: Mount, access: VolumeAccess, volume: str) -> None:
    """Raise AlreadyExists when ``volume`` is mounted in another way than is wanted now.

    As the other of filesystem and block device, read-only where it is to be written, or with another SELinux context.
    """
    if is_block(mount) != access.is_block:
        kind = "block device" if is_block(mount) else "filesystem"
        raise AlreadyExists(f"{volume} is staged as a {kind} already")
    if not access.is_block and "ro" in mount.options and not wants_read_only(access):
        raise AlreadyExists(f"{volume} is staged read-only already")
    if difference := other_labels(mount, access):
        raise AlreadyExists(f"{volume} {difference}")


def other_labels(mount: Mount, access: VolumeAccess) -> str:
    """Return in words how files would be labelled otherwise than is wanted now, "" where they would not."""
    return "" if access.is_block else other_context(mount, _options(access))


def _options(access: VolumeAccess) -> list[str]:
    return [word for flag in access.mount_flags for word in split_options(flag)]
