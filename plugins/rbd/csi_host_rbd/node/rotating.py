"""Changing the passphrase of a volume that is staged on this node; encryption/rotation.py says in which order."""

from collections.abc import Mapping
from pathlib import Path

from csi_host.errors import FailedPrecondition
from csi_host.locks import VolumeLocks
from csi_host.node.mounts import read_mounts
from csi_host_rbd.credentials import Credentials
from csi_host_rbd.encryption.rotation import rotate
from csi_host_rbd.encryption.rotation_lock import RotationLock
from csi_host_rbd.node.devices import Devices
from csi_host_rbd.node.images import NodeImages
from csi_host_rbd.node.staging import Staging
from csi_host_rbd.node.stash import Stash


class NotStaged(FailedPrecondition):
    """The volume is not staged on this node."""


class KeyRotation:
    """Changes passphrases, of staged volumes alone: of them this node knows how they are attached."""

    def __init__(self, *, images: NodeImages, devices: Devices, volume_locks: VolumeLocks) -> None:
        self._images = images
        self._devices = devices
        self._volume_locks = volume_locks

    def rotate(self, volume_id: str, secrets: Mapping[str, str]) -> None:
        """Give the volume another passphrase; ``secrets`` are those of NodeStageVolume.

        Raises NotStaged, and as ``encryption.rotation.rotate`` does.
        """
        credentials = Credentials.from_secrets(secrets)
        with self._volume_locks.hold(volume_id):
            stash = _staged(volume_id)
            with self._images.find(volume_id, None, credentials, secrets) as image:
                lock = RotationLock(image.pool, volume_id)
                rotate(self._devices.luks, image, lock.held(), self._devices.with_header(stash, image))


def _staged(volume_id: str) -> Stash:
    # A volume is staged at <directory>/<volume id>; a pod's mount has another name.
    for mount in read_mounts():
        place = Path(mount.mount_point)
        if place.name != volume_id:
            continue
        stash = Staging(directory=place.parent, volume_id=volume_id).stash()
        if stash is not None:
            return stash
    raise NotStaged(
        f"volume_id: volume {volume_id} is not staged on this node; its passphrase is changed on a node where it is"
    )
