"""Volumes are changed while they are in use: limits of their I/O, and what is noted on their images."""

from collections.abc import Mapping

from csi_host.locks import Operation, VolumeLocks
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.failures import ImageNotFound
from csi_host_rbd.ceph.image import open_image
from csi_host_rbd.errors import VolumeNotFound
from csi_host_rbd.modification import Modification
from csi_host_rbd.places import Places, lock_key


class VolumeModifier:
    """Changes volumes of all clusters."""

    def __init__(self, *, places: Places, volume_locks: VolumeLocks) -> None:
        self._places = places
        self._locks = volume_locks

    def modify(self, handle: str, modification: Modification, secrets: Mapping[str, str]) -> None:
        """Give a volume what is asked for; raises VolumeNotFound, InvalidArgument before anything is written.

        Each key is a write of its own: cut off between two, the retry writes what is left.
        """
        # Other controllers are kept out as by growing: a deletion must not go on beside it.
        with (
            self._locks.hold(lock_key(handle)),
            self._places.volume(handle, secrets, operation=Operation.EXPAND) as (_, reservation),
        ):
            try:
                modify_image(reservation.pool, reservation.image_name, modification)
            except ImageNotFound as reason:
                raise VolumeNotFound(f"volume_id: {handle}: {reason}") from reason


def modify_image(pool: Pool, name: str, modification: Modification) -> None:
    """Write what an image lacks. 12 operations for nothing, else 25 and 3 for each key; raises ImageNotFound."""
    with open_image(pool, name=name, read_only=True) as image:
        changes = modification.changes(image.metadata())
    if changes:
        with open_image(pool, name=name) as image:
            changes.apply(image)
