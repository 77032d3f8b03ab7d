"""Volumes on this node: attached, mounted, published, grown, and taken away again.

What is there is read from mountinfo and asked of the attacher every time; the stash only says which image it was.
What a failure leaves, and who mends it:

* a step of ``stage`` fails: what this call made is undone; what cannot be undone turns the error into a non-final one;
* the process dies within ``stage``: the retry finds the device, formats only what it may (see formatting) and mounts;
* it dies within ``unstage``: the retry finds no mount, and detaches what the stash names; the stash goes last;
* the stash is lost: a mount, or else the volume's id, says which devices are its, see lost_volumes;
* the qemu mounter's container has ended: a mount alone says which loop device has to go, see lost_volumes;
* the site was lost, and the volume is found at the other one: ``stage`` refuses while a device here is the lost site's;
* what serves the device has died below the mount: ``stage`` unmounts and attaches anew, ``unstage`` takes it away;
* its device vanished, and pods still have mounts of it: ``stage`` attaches anew, ``publish`` replaces those mounts;
* a growth is cut off: the filesystem is smaller than its device, and grows on when it is staged or expanded next;
* a device stops answering: what is read of it here is given up in time, a program is killed, its lock comes free;
* a reboot left a stash and a plain directory: ``publish`` refuses, ``stage`` and ``unstage`` go on from there.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from csi_host.access import AccessMode, VolumeAccess
from csi_host.errors import FailedPrecondition, InvalidArgument
from csi_host.node.devices import size_bytes
from csi_host.node.mounts import Mount, is_mount_point, mounts_of_device
from csi_host.process import Runner
from csi_host_common_node import volumes
from csi_host_common_node.filesystem import DEFAULT_FS_TYPE, Filesystems
from csi_host_common_node.mounter import MOUNT_PROGRAMS, Mounter
from csi_host_common_node.patience import Patience
from csi_host_common_node.programs import needed_for, require
from csi_host_common_node.resize import Grower
from csi_host_rbd.attach.attacher import AttachRequest, DeviceInUse
from csi_host_rbd.attach.cleanup import Rollback
from csi_host_rbd.node.devices import Devices
from csi_host_rbd.node.formatting import ensure_filesystem, mark_raw
from csi_host_rbd.node.growing import make_ready
from csi_host_rbd.node.image import NodeImage
from csi_host_rbd.node.lost_stash import forget_devices
from csi_host_rbd.node.lost_volumes import LostVolumes
from csi_host_rbd.node.mounting import mount_filesystem
from csi_host_rbd.node.staged import FILESYSTEMS, device_of, is_block, other_labels, refuse_otherwise, wants_read_only
from csi_host_rbd.node.staging import Staging
from csi_host_rbd.node.stash import Stash, StashUnreadable, remove_stash, write_stash

log = logging.getLogger(__name__)

_DIRECTORY_MODE = 0o750
_FILE_MODE = 0o600


class NotStagedHere(FailedPrecondition):
    """The volume is not staged at the given path, or not in the way it is wanted."""


class OtherVolumeStaged(FailedPrecondition):
    """The staging path belongs to another volume."""


class SecondTarget(FailedPrecondition):
    """A volume of SINGLE_NODE_SINGLE_WRITER is published at another target already."""


class NodeVolumes:
    """The volumes of this node; the caller holds the volume's lock."""

    def __init__(self, *, run: Runner, devices: Devices) -> None:
        self._mounter = Mounter(run)
        patience = Patience()
        self._filesystems = Filesystems(run, patience=patience)
        self._grower = Grower(run, patience=patience)
        self._devices = devices
        self._lost = LostVolumes(devices, self._mounter)

    def is_staged(self, staging: Staging, access: VolumeAccess) -> bool:
        """Whether nothing is left to do: mounted, served by something alive, and known to the stash.

        Raises AlreadyExists when it is staged in another way, see ``refuse_otherwise``; OtherVolumeStaged when another
        volume is staged at the path.
        """
        stash = _stash_if_sound(staging)
        if stash is not None and not staging.owns(stash):
            raise OtherVolumeStaged(
                f"staging_target_path: volume {stash.volume_id} is staged at {staging.directory}; unstage it first"
            )
        mount = staging.mount()
        if mount is None:
            return False
        refuse_otherwise(mount, access, f"staging_target_path: volume {staging.volume_id} at {staging.directory}")
        return stash is not None and self._is_served(stash, mount)

    def keep(self, staging: Staging, request_of: Callable[[Stash], AttachRequest]) -> None:
        """Have what serves a staged volume be replaced by ``request_of`` the volume should it die; asks no cluster."""
        stash = staging.stash()
        if stash is not None and staging.owns(stash):
            self._devices.keep(stash, request_of(stash))

    def stage(self, staging: Staging, access: VolumeAccess, image: NodeImage) -> None:
        """Attach the image and mount it, formatted if need be.

        Raises DeviceInUse when the volume still has a device here of another cluster, whose image it was before.
        """
        if (before := _stash_if_sound(staging)) is not None:
            self._devices.refuse_other_cluster(before, image.spec)
        stash = image.stash(staging.volume_id, self._devices.mounter_of(image))
        _check_programs(access)
        attachment, mount = self._devices.revived(stash, image), staging.mount()
        if mount is not None:
            if attachment and attachment.is_alive and attachment.device == device_of(mount):
                # Staged all along: only the stash was lost, or the device's server replaced.
                write_stash(staging.directory, self._devices.noted(stash))
                forget_devices(staging)
                return
            _refuse_shared(mount, staging)
            self._lost.release(staging, mount, stash)
            self._mounter.unmount(staging.target)
        with Rollback() as rollback:
            rollback.add(lambda: self._release(staging, stash, was_attached=attachment is not None))
            write_stash(staging.directory, stash)
            forget_devices(staging)
            device = self._devices.attach(stash, image, access, found=attachment)
            if (noted := self._devices.noted(stash)) != stash:
                write_stash(staging.directory, noted)
            if _make_target(staging.target, is_block=access.is_block):
                rollback.add(lambda: volumes.unpublish(self._mounter, staging.target))
            if access.is_block:
                if not wants_read_only(access):
                    mark_raw(image)
                self._mounter.bind(device, staging.target)
            else:
                self._mount_filesystem(device, staging, access, image)

    def unstage(self, staging: Staging) -> None:
        """Unmount the volume and detach its image; fine when both are gone. Leaves the staging directory empty."""
        try:
            stash, is_damaged = staging.stash(), False
        except StashUnreadable as error:
            log.warning("volume %s is unstaged without its stash: %s", staging.volume_id, error)
            stash, is_damaged = None, True
        if stash is not None and staging.owns(stash):
            self._lost.release(staging, staging.mount(), stash)
            volumes.unpublish(self._mounter, staging.target)
            self._devices.detach(stash)
            self._devices.put_log_away(stash)
        else:
            self._lost.unstage(staging, staging.mount(), had_stash=is_damaged)
        if stash is None or staging.owns(stash):
            remove_stash(staging.directory)

    def publish(self, staging: Staging, target: Path, access: VolumeAccess, *, read_only: bool) -> None:
        """Show the staged volume at ``target`` as well; fine when it is there in the same way already."""
        require(MOUNT_PROGRAMS)
        mount = staging.mount()
        if mount is None or is_block(mount) != access.is_block:
            kind = "block device" if access.is_block else "filesystem"
            raise NotStagedHere(
                f"staging_target_path: volume {staging.volume_id} is not staged as a {kind} at {staging.directory}; "
                "stage it first"
            )
        read_only = read_only or wants_read_only(access)
        if mount.is_read_only and not read_only and not access.is_block:
            raise NotStagedHere(f"volume {staging.volume_id} is staged read-only and cannot be published for writing")
        _refuse_other_labels(mount, access, target, f"staging_target_path: volume {staging.volume_id}")
        volumes.clear_vanished(self._mounter, staging.target, target)
        # What is at the target already is no second one: whether it is the same is for publishing to say.
        if access.mode is AccessMode.SINGLE_NODE_SINGLE_WRITER and not is_mount_point(target):
            self._refuse_second_target(staging, target)
        if access.is_block:
            volumes.publish_block(self._mounter, staging.target, target, read_only)
        else:
            volumes.publish_filesystem(self._mounter, staging.target, target, access.mount_flags, read_only)

    def unpublish(self, target: Path) -> None:
        """Take the volume away from ``target``; fine when it is gone."""
        volumes.unpublish(self._mounter, target)

    def expand(self, staging: Staging, *, required_bytes: int) -> int:
        """Show the image's size in the device and in its filesystem; return it in bytes.

        Raises FailedPrecondition when the image itself is smaller than ``required_bytes``.
        """
        mount, stash = staging.mount(), staging.stash()
        if mount is None or stash is None or not staging.owns(stash):
            raise NotStagedHere(f"volume {staging.volume_id} is not staged at {staging.directory}; stage it again")
        image_bytes = self._devices.grow(stash, at_least=required_bytes)
        if image_bytes < required_bytes:
            raise FailedPrecondition(
                f"capacity_range.required_bytes: expected at most the {image_bytes} bytes that the image has, got "
                f"{required_bytes}; ControllerExpandVolume comes first"
            )
        device = device_of(mount)
        if not is_block(mount):
            self._grower.grow(device, staging.target)
        # A LUKS header is part of the volume's size, as the controller counts it, and not of the device's.
        return image_bytes if stash.encrypted else size_bytes(device)

    def _is_served(self, stash: Stash, mount: Mount) -> bool:
        attachment = self._devices.find(stash)
        return attachment is not None and attachment.is_alive and attachment.device == device_of(mount)

    def _mount_filesystem(self, device: str, staging: Staging, access: VolumeAccess, image: NodeImage) -> None:
        read_only = wants_read_only(access)
        kind = ensure_filesystem(
            self._filesystems,
            device,
            image,
            fs_type=access.fs_type,
            mkfs_options=image.mkfs_options,
            never_because=_why_never_formatted(image, read_only=read_only),
        )
        require(needed_for(kind))
        if not read_only:
            make_ready(self._filesystems, self._grower, device, kind, image)
        mount_filesystem(self._mounter, device, staging, kind, access)
        if not read_only:
            self._grower.grow(device, staging.target)

    def _release(self, staging: Staging, stash: Stash, *, was_attached: bool) -> None:
        try:
            self._devices.detach(stash)
        except DeviceInUse:
            # Mounted elsewhere since before this call: not this call's to take away; the stash still says what it is.
            if not was_attached:
                raise
            return
        remove_stash(staging.directory)

    def _refuse_second_target(self, staging: Staging, target: Path) -> None:
        if others := volumes.other_targets(staging.target, target):
            raise SecondTarget(
                f"target_path: volume {staging.volume_id} may have one target (SINGLE_NODE_SINGLE_WRITER) and is "
                f"published at {', '.join(others)}"
            )


def _check_programs(access: VolumeAccess) -> None:
    fs_type = access.fs_type
    if access.is_block:
        require(MOUNT_PROGRAMS)
        return
    if fs_type and fs_type not in FILESYSTEMS:
        raise InvalidArgument(f"fs_type: expected one of {', '.join(sorted(FILESYSTEMS))}, got {fs_type}")
    require(needed_for(fs_type or DEFAULT_FS_TYPE))


def _stash_if_sound(staging: Staging) -> Stash | None:
    try:
        return staging.stash()
    except StashUnreadable:
        return None


def _refuse_shared(mount: Mount, staging: Staging) -> None:
    """Leave a dead device alone that pods still have: its mounts would keep it, and nobody would know whose it is."""
    try:
        users = [each.mount_point for each in mounts_of_device(device_of(mount)) if each != mount]
    except FileNotFoundError:
        return
    if users:
        raise DeviceInUse(
            f"volume {staging.volume_id} has to be staged anew, as what serves it has died; it is still mounted at "
            f"{', '.join(users)}: unpublish it there first"
        )


def _refuse_other_labels(mount: Mount, access: VolumeAccess, target: Path, volume: str) -> None:
    """Refuse a SELinux context that the bind mount would drop in silence, as the filesystem has another."""
    if difference := other_labels(mount, access):
        if is_mount_point(target):
            raise volumes.TargetInUse(f"target_path: {volume} is published and {difference}")
        raise NotStagedHere(f"{volume} {difference}; unstage it first")


def _make_target(target: Path, *, is_block: bool) -> bool:
    """Make what the volume is mounted on, unless it is there; return whether it was made."""
    try:
        if is_block:
            target.touch(mode=_FILE_MODE, exist_ok=False)
        else:
            target.mkdir(mode=_DIRECTORY_MODE)
    except FileExistsError:
        if target.is_symlink() or target.is_dir() is is_block:
            raise FailedPrecondition(f"staging_target_path: something else is in the way at {target}") from None
        return False
    return True


def _why_never_formatted(image: NodeImage, *, read_only: bool) -> str:
    if image.is_static:
        return "was made by an administrator (staticVolume), so it is not formatted here"
    return "is wanted read-only, so it is not formatted" if read_only else ""
