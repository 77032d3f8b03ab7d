"""Unstaging a volume whose stash is lost: what belongs to it is told by what is mounted, or by the volume's id.

ceph-csi writes the stash without fsync: after a power cut it is empty. Where nothing is mounted either, these are the
volume's, and nothing else is:

* what an earlier call has noted, see lost_stash;
* the mapping of dm-crypt with the volume's name, and the devices below it;
* a device of rbd-nbd whose cookie is the volume's id, and a storage daemon that was started for the volume;
* where there is a stash that cannot be read: what shows an image whose name ends with the handle's uuid, as the names
  that ceph-csi and this driver give do. A volume that an administrator made has no uuid: its image has the handle for a
  name, in whatever pool; of these only one that nobody uses is taken away, and none of several.

What is in use is refused as always. A stash that is not there at all is usual, as every repeated unstage finds none:
then what is mounted is another staging path's and stays, and no image is looked for by its name.
"""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from csi_host.errors import FailedPrecondition
from csi_host.node.mounts import Mount, mounts_of_device
from csi_host_common_node import volumes
from csi_host_common_node.mounter import Mounter
from csi_host_rbd.attach.attacher import Attacher, ImageSpec
from csi_host_rbd.attach.block_devices import holders_of, mount_points_anywhere
from csi_host_rbd.migration import is_migrated, parse_migrated
from csi_host_rbd.node.devices import Devices
from csi_host_rbd.node.lost_stash import forget_devices, note_devices, noted_devices
from csi_host_rbd.node.staged import device_of
from csi_host_rbd.node.staging import Staging
from csi_host_rbd.node.stash import Stash
from csi_host_rbd.volume_id import InvalidVolumeId, VolumeId

log = logging.getLogger(__name__)

Attached = tuple[Attacher, ImageSpec]


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
        stack = tuple(device for device in stack if Path(device).is_block_device())
        if stack and staging.directory.is_dir():
            note_devices(staging, stack)
        volumes.unpublish(self._mounter, staging.target)
        self._detach(stack, staging)
        if mount is None or not stack:
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
        self._detach(stack, staging)
        forget_devices(staging)

    def _unknown(self, mount: Mount, stash: Stash) -> tuple[str, ...]:
        device, known = device_of(mount), self._devices.find(stash)
        if not Path(device).is_block_device() or (known is not None and known.device == device):
            return ()
        return self._devices.stack_at(device)

    def _detach(self, stack: Iterable[str], staging: Staging) -> None:
        """Detach devices, but those that no attacher takes for its own."""
        for device in stack:
            # What is closed has no device file any more.
            if Path(device).exists() and not self._devices.detach_device(device):
                log.warning("volume %s was staged as %s, which is no mounter's and stays", staging.volume_id, device)

    def _stack(self, staging: Staging, *, had_stash: bool) -> tuple[str, ...]:
        found = self._devices.stack_of(staging.volume_id)
        if not had_stash and any(_is_mounted(device) for device in found):
            found = ()
        return tuple(dict.fromkeys((*noted_devices(staging), *found)))

    def _images(self, volume_id: str, *, had_stash: bool) -> list[Attached]:
        """Return the volume's images that are attached here, each once; raises VolumeAmbiguous."""
        if not had_stash and self._devices.stack_of(volume_id):
            # What is below a mapping that another staging path has mounted shows no mount of its own.
            return []
        everything = {
            (attacher.name, str(spec), spec.fsid, spec.volume_id): (attacher, spec)
            for attacher, spec in self._devices.attached()
        }
        by_id = [
            (attacher, spec)
            for attacher, spec in everything.values()
            if spec.volume_id == volume_id and (had_stash or not any(map(_is_mounted, _devices_of(attacher, spec))))
        ]
        if not had_stash:
            return by_id
        nameless = [(attacher, spec) for attacher, spec in everything.values() if not spec.volume_id]
        try:
            uuid = VolumeId.parse(volume_id).uuid
        except InvalidVolumeId:
            return [*by_id, *_administrators(nameless, volume_id)]
        by_name = [(attacher, spec) for attacher, spec in nameless if spec.image.endswith(uuid)]
        if len(by_name) > 1:
            raise VolumeAmbiguous(
                f"volume {volume_id}: its image-meta.json is damaged, and several images that may be its are attached "
                f"here: {_names(by_name)}; detach by hand those that nobody uses"
            )
        return [*by_id, *by_name]


def _administrators(attached: Iterable[Attached], volume_id: str) -> list[Attached]:
    """Return the image of a name that an administrator gives, unless there are several of it, or it is in use."""
    found = [(attacher, spec) for attacher, spec in attached if _is_administrators(spec, volume_id)]
    is_free = len(found) == 1 and not any(map(holders_of, _devices_of(*found[0])))
    if found and not is_free:
        log.warning("volume %s is gone; whose these are is not known, so they stay: %s", volume_id, _names(found))
    return found if is_free else []


def _names(attached: Iterable[Attached]) -> str:
    return ", ".join(sorted(f"{spec} of cluster {spec.fsid or 'unknown'}" for _, spec in attached))


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
