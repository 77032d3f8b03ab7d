"""Unstaging a volume whose stash is lost: what belongs to it is told by what is mounted, or by the volume's id.

ceph-csi writes the stash without fsync: after a power cut it is empty. Where nothing is mounted either, these are the
volume's, and nothing else is:

* what an earlier call has noted, see lost_stash;
* the mapping of dm-crypt with the volume's name, and the devices below it;
* a device of rbd-nbd whose cookie is the volume's id, and a storage daemon that was started for the volume;
* what shows an image whose name ends with the handle's uuid, as the names that ceph-csi and this driver give do. A
  volume that an administrator made has no uuid: its image has the handle for a name, in whatever pool.

What is in use is refused as always. A stash that is not there at all is usual, as every repeated unstage finds none:
then what is mounted is another staging path's and stays, and no image is looked for by an administrator's name.
"""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from csi_host.errors import FailedPrecondition
from csi_host.node.mounts import Mount, mounts_of_device
from csi_host_common_node import volumes
from csi_host_common_node.mounter import Mounter
from csi_host_rbd.attach.attacher import Attacher, ImageSpec
from csi_host_rbd.attach.block_devices import mount_points_anywhere
from csi_host_rbd.migration import is_migrated, parse_migrated
from csi_host_rbd.node.devices import Devices
from csi_host_rbd.node.lost_stash import forget_devices, note_devices, noted_devices
from csi_host_rbd.node.staged import device_of
from csi_host_rbd.node.staging import Staging
from csi_host_rbd.node.stash import Stash
from csi_host_rbd.volume_id import InvalidVolumeId, VolumeId

log = logging.getLogger(__name__)


class VolumeAmbiguous(FailedPrecondition):
    """Several images are attached that may be the volume's; the message names them."""


class LostVolumes:
    """Takes volumes away of which no stash says what they are; the caller holds the volume's lock."""

    def __init__(self, devices: Devices, mounter: Mounter) -> None:
        self._devices = devices
        self._mounter = mounter

    def unstage(self, staging: Staging, mount: Mount | None, *, had_stash: bool) -> None:
        """Unmount and detach the volume; fine when there is nothing of it. ``had_stash`` is for an unreadable one.

        Raises DeviceInUse, VolumeAmbiguous.
        """
        stack = self._stack(staging, had_stash=had_stash) if mount is None else self._devices.stack_at(device_of(mount))
        stack = tuple(device for device in stack if Path(device).exists())
        if stack and staging.directory.is_dir():
            note_devices(staging, stack)
        volumes.unpublish(self._mounter, staging.target)
        if strangers := self._detach(stack):
            raise FailedPrecondition(
                f"{', '.join(strangers)}: it is not known which image this shows; detach it by hand"
            )
        if mount is None:
            for attacher, spec in self._images(staging.volume_id, had_stash=had_stash):
                attacher.detach(spec)
        forget_devices(staging)

    def release(self, staging: Staging, mount: Mount | None, stash: Stash) -> None:
        """Unmount and detach a staged device that is not the one that its attacher knows; nothing to do for that one.

        The qemu mounter's are forgotten when its container ends. Raises DeviceInUse.
        """
        stack = noted_devices(staging) if mount is None else self._unknown(mount, stash)
        if not stack:
            return
        note_devices(staging, stack)
        volumes.unpublish(self._mounter, staging.target)
        if strangers := self._detach(stack):
            log.warning("volume %s was staged as %s, which stays", staging.volume_id, ", ".join(strangers))
        forget_devices(staging)

    def _unknown(self, mount: Mount, stash: Stash) -> tuple[str, ...]:
        device, known = device_of(mount), self._devices.find(stash)
        if not Path(device).exists() or (known is not None and known.device == device):
            return ()
        return self._devices.stack_at(device)

    def _detach(self, stack: Iterable[str]) -> list[str]:
        """Detach devices, and return those that no attacher takes for its own."""
        # What is closed has no device file any more.
        return [device for device in stack if Path(device).exists() and not self._devices.detach_device(device)]

    def _stack(self, staging: Staging, *, had_stash: bool) -> tuple[str, ...]:
        found = self._devices.stack_of(staging.volume_id)
        if not had_stash and any(_is_mounted(device) for device in found):
            found = ()
        return tuple(dict.fromkeys((*noted_devices(staging), *found)))

    def _images(self, volume_id: str, *, had_stash: bool) -> list[tuple[Attacher, ImageSpec]]:
        """Return the volume's images that are attached here, each once; raises VolumeAmbiguous."""
        if not had_stash and self._devices.stack_of(volume_id):
            # What is below a mapping that another staging path has mounted shows no mount of its own.
            return []
        found = {
            (attacher.name, str(spec), spec.fsid, spec.volume_id): (attacher, spec)
            for attacher, spec in self._devices.attached()
            if _is_of(spec, volume_id, had_stash=had_stash)
            and (had_stash or not any(map(_is_mounted, _devices_of(attacher, spec))))
        }
        images = {(str(spec), spec.fsid) for _, spec in found.values() if not spec.volume_id}
        if len(images) > 1:
            if not had_stash:
                return []
            places = ", ".join(f"{name} of cluster {fsid or 'unknown'}" for name, fsid in sorted(images))
            raise VolumeAmbiguous(
                f"volume {volume_id}: its image-meta.json is damaged, and several images that may be its are attached "
                f"here: {places}; detach by hand those that nobody uses"
            )
        return list(found.values())


def _is_of(spec: ImageSpec, volume_id: str, *, had_stash: bool) -> bool:
    if spec.volume_id:
        return spec.volume_id == volume_id
    try:
        return spec.image.endswith(VolumeId.parse(volume_id).uuid)
    except InvalidVolumeId:
        return had_stash and _is_administrators(spec, volume_id)


def _is_administrators(spec: ImageSpec, volume_id: str) -> bool:
    if not is_migrated(volume_id):
        return spec.image == volume_id
    try:
        migrated = parse_migrated(volume_id)
    except InvalidVolumeId:
        return False
    return (spec.pool, spec.image) == (migrated.pool, migrated.image)


def _devices_of(attacher: Attacher, spec: ImageSpec) -> Iterator[str]:
    if (attachment := attacher.find(spec)) is not None:
        yield attachment.device


def _is_mounted(device: str) -> bool:
    try:
        return bool(mounts_of_device(device)) or any(mount_points_anywhere(device))
    except FileNotFoundError:
        return False
