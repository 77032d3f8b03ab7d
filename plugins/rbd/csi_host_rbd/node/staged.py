"""What a staging mount says of the volume that is mounted there."""

import os
from pathlib import Path

from csi_host.access import VolumeAccess
from csi_host.errors import AlreadyExists
from csi_host.node.devices import device_with
from csi_host.node.mounts import Mount, node_number, split_options
from csi_host_rbd.node.selinux import other_context

FILESYSTEMS = frozenset({"btrfs", "ext3", "ext4", "xfs"})


def is_block(mount: Mount) -> bool:
    """Whether it is a block device's node that is mounted, and not a filesystem."""
    return mount.fs_type not in FILESYSTEMS


def device_of(mount: Mount) -> str:
    """Return the device below a staging mount: of a block volume its node is what is mounted.

    A path where nothing is when the device has gone.
    """
    if is_block(mount):
        # By its number: ceph-csi mounts the node that dm-crypt's mapping has below /dev/mapper. A node that was removed
        # says nothing, as its number may be another device's by now.
        number = None if mount.is_deleted else node_number(mount)
        return f"/dev/{Path(mount.root).name}" if number is None else _device_with(number)
    if mount.fs_type == "btrfs":
        # The number that its mounts show is no device's.
        return os.path.realpath(mount.source)
    return _device_with(mount.device)


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


def _device_with(number: str) -> str:
    return device_with(number) or f"/dev/{number}"


def _options(access: VolumeAccess) -> list[str]:
    return [word for flag in access.mount_flags for word in split_options(flag)]
