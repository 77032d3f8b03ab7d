"""A volume's life on the cluster: made, found, grown and deleted.

What each failure leaves behind, and who mends it:

* the process dies between two steps of ``create``: a reservation, perhaps with an image; the retry takes it over;
* an operation times out: its outcome is unknown, so nothing is undone and the code is not final; the retry resumes;
* an operation fails for good: image and reservation are undone; if that fails as well, the code is not final;
* the process dies between two steps of ``delete``: the image is in the trash or gone, and the journal still knows
  the handle; the retry goes on from there;
* the passphrase of an encrypted volume is made when the image is there and destroyed when it is gone, each before the
  journal says so (encryption/keys.py);
* two callers: the locks of the name and of the handle let one through, in one controller or in two (shared_locks.py).
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from csi_host.capacity import CapacityRange
from csi_host.locks import Operation, OperationLocks, VolumeLocks
from csi_host_rbd.candidates import Candidate, candidates_of, is_beside_source
from csi_host_rbd.ceph.failures import ImageNotFound
from csi_host_rbd.ceph.image import Image, look_at_image
from csi_host_rbd.credentials import Credentials
from csi_host_rbd.encryption.service import Encryption
from csi_host_rbd.errors import VolumeHasSnapshots, VolumeInUse, VolumeIsSecondary, VolumeNotFound
from csi_host_rbd.image_naming import uuid_in
from csi_host_rbd.making import VolumeMaker, volume_of
from csi_host_rbd.opening import images_may_go, opened
from csi_host_rbd.places import Place, Places, lock_key
from csi_host_rbd.removal import Removal, lasting_watchers
from csi_host_rbd.reservations import VOLUMES, Reservation
from csi_host_rbd.sizes import image_size
from csi_host_rbd.topology import TopologyUnserved
from csi_host_rbd.volume import Volume, WantedVolume

log = logging.getLogger(__name__)

__all__ = ["Volume", "Volumes", "WantedVolume"]


class Volumes:
    """The volumes of the clusters in the configuration."""

    def __init__(
        self,
        *,
        places: Places,
        maker: VolumeMaker,
        removal: Removal,
        encryption: Encryption,
        volume_locks: VolumeLocks,
        operation_locks: OperationLocks,
    ) -> None:
        self._places = places
        self._maker = maker
        self._removal = removal
        self._encryption = encryption
        self._locks = volume_locks
        self._operations = operation_locks

    def create(self, wanted: WantedVolume, secrets: Mapping[str, str]) -> Volume:
        """Make the volume, or return the one that an earlier call of this name made.

        Raises VolumeDiffers when the name has a volume of a size that does not fit, OperationPending when another
        call is at it, and for a volume that is made from a source what is wrong with that.
        """
        credentials = Credentials.from_secrets(secrets)
        parameters = wanted.parameters
        keys = self._encryption.keys_of_class(parameters.encryption, secrets, owner=parameters.owner)
        wanted = replace(wanted, keys=keys)
        with images_may_go(), ExitStack() as stack:
            stack.enter_context(self._locks.hold(wanted.name))
            candidates = [
                (candidate, stack.enter_context(self._places.of_class(candidate.wanted.parameters, credentials)))
                for candidate in candidates_of(wanted)
            ]
            if wanted.is_constrained:
                candidates = [one for one in candidates if is_beside_source(wanted.source, one[1].pool.pool_id)]
                _check_any(candidates)
            for pool in dict.fromkeys(place.pool for _, place in candidates):
                stack.enter_context(self._places.hold_name(pool, VOLUMES, wanted.name))
            for candidate, place in candidates:
                # An earlier call may have preferred another pool.
                found = place.volumes.find(wanted.name)
                if found is not None:
                    return candidate.completed(self._maker.resume(candidate.wanted, place, found, secrets))
            candidate, place = candidates[0]
            return candidate.completed(self._maker.make(candidate.wanted, place, secrets))

    def find(self, handle: str, secrets: Mapping[str, str]) -> Volume:
        """Return the volume of a handle; raises VolumeNotFound."""
        with (
            self._places.volume(handle, secrets) as (place, reservation),
            opened(reservation, f"volume_id: {handle}", VolumeNotFound, read_only=True) as image,
        ):
            return volume_of(place, reservation, image.size_bytes)

    def expand(self, handle: str, capacity: CapacityRange, secrets: Mapping[str, str]) -> Volume:
        """Grow a volume to what is required, never beyond the limit, and never shrink it; raises VolumeNotFound."""
        wanted_bytes = image_size(capacity) if capacity.required_bytes else 0
        with (
            self._locks.hold(lock_key(handle)),
            self._places.volume(handle, secrets, operation=Operation.EXPAND) as (place, reservation),
            self._operations.hold(Operation.EXPAND, lock_key(handle)),
            opened(reservation, f"volume_id: {handle}", VolumeNotFound, read_only=False) as image,
        ):
            capacity.check_limit(max(image.size_bytes, wanted_bytes))
            if image.size_bytes < wanted_bytes:
                image.resize(wanted_bytes)
            return volume_of(place, reservation, image.size_bytes)

    def delete(self, handle: str, secrets: Mapping[str, str]) -> None:
        """Delete a volume; fine when there is none. Raises VolumeInUse naming who has the image open."""
        with self._locks.hold(lock_key(handle)), self._operations.hold(Operation.DELETE, lock_key(handle)):
            try:
                with self._places.volume(handle, secrets, operation=Operation.DELETE) as (place, reservation):
                    self._delete(place, reservation, handle, secrets)
            except VolumeNotFound as reason:
                log.info(f"nothing to delete: {reason}")

    def _delete(self, place: Place, reservation: Reservation, handle: str, secrets: Mapping[str, str]) -> None:
        # A CreateVolume of the same name must not take over what is being removed.
        names = [reservation.name] if reservation.name else []
        with (
            self._locks.hold(*names),
            self._places.hold_name(reservation.journal_pool, VOLUMES, reservation.name),
        ):
            is_owned_here = True
            try:
                is_owned_here = self._delete_image(place, reservation)
            except ImageNotFound:
                self._removal.finish_in_trash(place, reservation)
            if is_owned_here:
                self._encryption.forget(reservation, handle, secrets)
            place.volumes.undo(reservation)

    def _delete_image(self, place: Place, reservation: Reservation) -> bool:
        """Take the image away; returns whether it was this cluster's to remove."""
        pool, name = reservation.pool, reservation.image_name
        doomed = look_at_image(pool, name, lambda image: _doomed(image, place.cluster.config.mirror_daemon_count))
        if not doomed.is_owned_here:
            return False
        self._removal.remove_intermediate(place, pool, name)
        if doomed.leftovers:
            self._removal.remove_snapshots(pool, name, doomed.leftovers)
        self._removal.trash(place, pool, name, doomed.image_id)
        return True


@dataclass(frozen=True, kw_only=True)
class _Doomed:
    """An image that may be removed: by this cluster, or by the one of its primary."""

    image_id: str
    is_owned_here: bool
    leftovers: list[str]


def _doomed(image: Image, mirror_daemon_count: int) -> _Doomed:
    is_owned_here = _check_deletable(image, mirror_daemon_count)
    return _Doomed(image_id=image.image_id, is_owned_here=is_owned_here, leftovers=_leftovers(image))


def _check_any(candidates: Sequence[tuple[Candidate, Place]]) -> None:
    if not candidates:
        raise TopologyUnserved(
            "accessibility_requirements: none of the pools that serve them has the source of volume_content_source"
        )


def _check_deletable(image: Image, mirror_daemon_count: int) -> bool:
    """Whether the image is this cluster's to remove; raises VolumeInUse, VolumeIsSecondary."""
    mirroring = image.mirroring()
    if mirroring.is_enabled and not mirroring.is_primary:
        if not image.is_replaying():
            raise VolumeIsSecondary(
                f"rbd {image.spec} is a mirror's copy that is not being replayed; promote or resync it"
            )
        # The primary's cluster owns it, and its mirror daemon removes this copy when the primary goes.
        return False
    watchers = lasting_watchers(image, allowed=mirror_daemon_count if mirroring.is_enabled else 0)
    if watchers:
        raise VolumeInUse(f"rbd {image.spec} is still being used: open at {', '.join(map(str, watchers))}")
    return True


def _leftovers(image: Image) -> list[str]:
    """Return the snapshots that clones and snapshots which were cut off left; raises VolumeHasSnapshots for others.

    The trash is never emptied of an image with snapshots: what a person took must be removed by that person.
    """
    names = image.user_snapshots()
    foreign = [name for name in names if not uuid_in(name)]
    if foreign:
        raise VolumeHasSnapshots(f"rbd {image.spec} has snapshots that are not this driver's: {', '.join(foreign)}")
    return names
