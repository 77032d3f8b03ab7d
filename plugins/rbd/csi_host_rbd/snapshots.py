"""A snapshot's life on the cluster, in ceph-csi's layout.

A snapshot is an image of its own: a clone of a librbd snapshot that is taken of the volume for it and removed at once,
with a librbd snapshot on it, from which volumes are made; image and both snapshots have one name. So a volume can be
deleted while its snapshots live, and a snapshot while the volumes made from it do.

What each failure leaves behind, and who mends it: as for volumes (volumes.py). The retry of a creation that was cut off
takes the snapshot of the volume anew, unless the clone of it is attached to its parent.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC

from csi_host.errors import Aborted, InvalidArgument
from csi_host.locks import Operation, OperationLocks, SnapshotLocks
from csi_host_rbd.ceph import image_names, parents
from csi_host_rbd.ceph.create import ImageOptions
from csi_host_rbd.ceph.failures import ImageExists, ImageNotFound
from csi_host_rbd.ceph.image import open_image
from csi_host_rbd.chains import Chains
from csi_host_rbd.clusters import ClusterNotConfigured
from csi_host_rbd.contents import Contents, Original
from csi_host_rbd.encryption.service import Encryption, forget
from csi_host_rbd.errors import (
    ClusterNotServed,
    GroupSnapshotNotFound,
    SnapshotDiffers,
    SnapshotInGroup,
    SnapshotInUse,
    SnapshotNotFound,
)
from csi_host_rbd.features import Feature
from csi_host_rbd.image_metadata import NamesOnImages
from csi_host_rbd.image_naming import uuid_in
from csi_host_rbd.opening import images_may_go
from csi_host_rbd.places import Place, Places, lock_key
from csi_host_rbd.removal import Removal, lasting_watchers
from csi_host_rbd.reservations import SNAPSHOTS, Reservation
from csi_host_rbd.snapshot import Snapshot
from csi_host_rbd.snapshot_parameters import SnapshotParameters
from csi_host_rbd.taking_back import take_back_after
from csi_host_rbd.volume_id import VolumeId

log = logging.getLogger(__name__)

# deep-flatten: when the image is filled, the snapshot on it lets go of the volume as well.
_OPTIONS = ImageOptions(features=Feature.LAYERING | Feature.DEEP_FLATTEN)


@dataclass(frozen=True, kw_only=True)
class WantedSnapshot:
    """What CreateSnapshot asks for; ``volume_id`` is the handle of the source, ``group_id`` that of its group."""

    name: str
    volume_id: str
    parameters: SnapshotParameters
    group_id: str = ""


class Snapshots:
    """The snapshots of the volumes of the clusters in the configuration."""

    def __init__(
        self,
        *,
        places: Places,
        contents: Contents,
        chains: Chains,
        removal: Removal,
        names: NamesOnImages,
        encryption: Encryption,
        snapshot_locks: SnapshotLocks,
        operation_locks: OperationLocks,
    ) -> None:
        self._places = places
        self._contents = contents
        self._chains = chains
        self._removal = removal
        self._names = names
        self._encryption = encryption
        self._locks = snapshot_locks
        self._operations = operation_locks

    def create(self, wanted: WantedSnapshot, secrets: Mapping[str, str]) -> Snapshot:
        """Take the snapshot, or return the one that an earlier call of this name took.

        Raises VolumeNotFound for the source, SnapshotDiffers when the name is another volume's, TooManySnapshots.
        """
        with (
            images_may_go(),
            self._locks.hold(wanted.name),
            self._contents.of_volume(wanted.volume_id, None, secrets, Operation.CREATE) as source,
        ):
            return self.make_of(source, wanted)

    def make_of(self, source: Original, wanted: WantedSnapshot) -> Snapshot:
        """Do so with a source that the caller has open, and holds the locks of."""
        with self._places.hold_name(source.place.pool, SNAPSHOTS, wanted.name):
            # Before anything is made: whether a handle can be given.
            self.cluster_id(wanted.parameters, source.place)
            found = source.place.snapshots.find(wanted.name)
            return self._make(wanted, source) if found is None else self._resume(wanted, source, found)

    def delete(self, handle: str, secrets: Mapping[str, str], *, with_group: str = "") -> None:
        """Delete a snapshot; fine when there is none.

        Raises OperationPending while a volume is made from it, SnapshotInGroup for a part of a group snapshot, unless
        that is the one with the uuid ``with_group``, which goes as a whole.
        """
        with self._locks.hold(lock_key(handle)), self._operations.hold(Operation.DELETE, lock_key(handle)):
            try:
                with self._places.snapshot(handle, secrets, operation=Operation.DELETE) as (place, reservation):
                    self._check_deletable(reservation, handle, secrets, with_group)
                    self._delete(place, reservation, handle, secrets)
            except SnapshotNotFound as reason:
                log.info(f"nothing to delete: {reason}")

    def _check_deletable(
        self, reservation: Reservation, handle: str, secrets: Mapping[str, str], with_group: str
    ) -> None:
        if uuid_in(reservation.group_id) in {"", with_group}:
            return
        try:
            with self._places.group(reservation.group_id, secrets):
                raise SnapshotInGroup(
                    f"snapshot_id: {handle} is a part of the group snapshot {reservation.group_id}; delete that instead"
                )
        except (GroupSnapshotNotFound, ClusterNotServed) as reason:
            log.info(f"{handle} is all that is left of its group snapshot: {reason}")

    def cluster_id(self, parameters: SnapshotParameters, place: Place) -> str:
        """Return the cluster id for a handle: the class may name another entry for the same place."""
        ours = place.cluster.config
        cluster_id = parameters.cluster_id or ours.cluster_id
        if cluster_id == ours.cluster_id:
            return cluster_id
        try:
            theirs = self._places.cluster_config(cluster_id)
        except ClusterNotConfigured as reason:
            raise InvalidArgument(f"parameters[clusterID]: {reason}") from reason
        if (theirs.monitors, theirs.rados_namespace) != (ours.monitors, ours.rados_namespace):
            raise InvalidArgument(
                f"parameters[clusterID]: expected the cluster of the volume ({ours.cluster_id!r}), got {cluster_id!r}"
            )
        return cluster_id

    def is_ready(self, place: Place, reservation: Reservation, image_id: str) -> bool:
        """Whether a volume can be made from it; its chain is cut when it is getting long."""
        depth = self._chains.depth(place, reservation.pool, image_id)
        is_ready = not self._chains.is_too_deep(depth + 1)
        if not is_ready or self._chains.is_getting_long(depth):
            self._chains.shorten(place, reservation.pool, reservation.image_name, depth)
        return is_ready

    def _make(self, wanted: WantedSnapshot, source: Original) -> Snapshot:
        source.check_room()
        parameters = wanted.parameters
        if source.key_source is not None:
            source.key_source.keys.check()
        reservation = source.place.snapshots.reserve(
            wanted.name,
            prefix=parameters.name_prefix,
            owner=parameters.owner,
            source=source.source.image_name,
            kms_id=source.source.kms_id,
            encryption_type=source.source.encryption_type,
            group_id=wanted.group_id,
        )
        return self._make_image(wanted, source, reservation)

    def _resume(self, wanted: WantedSnapshot, source: Original, found: Reservation) -> Snapshot:
        """Take over what an earlier call of this name left: a whole snapshot, or the beginning of one."""
        if found.source != source.source.image_name:
            raise SnapshotDiffers(f"name: {wanted.name} is a snapshot of another volume (image {found.source})")
        try:
            image_id = image_names.read_image_id(found.pool, found.image_name)
            if found.image_id or parents.is_attached(found.pool, image_id, source.place.cluster.pool_at):
                source.withdraw(found.image_name)
                return self._finish(wanted, source, found, image_id)
        except ImageNotFound:
            if not image_names.is_whole(found.pool, found.image_name):
                return self._replace(wanted, source, found)
            if found.image_id:
                raise
            # One that it hangs on has gone, maybe for good: librbd lets a volume go of its parent while a snapshot is
            # taken of it. Nobody has been told of this image.
        self._removal.remove_image(source.place, found.pool, found.image_name, snapshots=[found.image_name])
        return self._make_image(wanted, source, found)

    def _replace(self, wanted: WantedSnapshot, source: Original, found: Reservation) -> Snapshot:
        """Make the image of a reservation of which there are remnants at the most."""
        if found.image_id:
            # It was whole, so this is a deletion that was cut off. It is finished first.
            self._removal.finish_in_trash(source.place, found)
            self._forget_passphrase(wanted, source, found)
            source.place.snapshots.undo(found)
            return self._make(wanted, source)
        image_names.remove_remnants(found.pool, found.image_name)
        # One that was half made, or undone, may have got into the trash and no further.
        self._removal.finish_trashed(source.place, found.pool, found.image_name)
        return self._make_image(wanted, source, found)

    def _make_image(self, wanted: WantedSnapshot, source: Original, reservation: Reservation) -> Snapshot:
        pool, name = reservation.pool, reservation.image_name
        try:
            source.make(pool, name, 0, _OPTIONS)
            image_id = image_names.read_image_id(pool, name)
            source.withdraw(name)
            return self._finish(wanted, source, reservation, image_id)
        except ImageExists as error:
            raise Aborted(f"image {pool.spec(name)} is just being made by another controller; ask again") from error
        except Exception as error:
            take_back_after(error, lambda: self._undo(wanted, source, reservation))
            raise

    def _finish(self, wanted: WantedSnapshot, source: Original, reservation: Reservation, image_id: str) -> Snapshot:
        """Give the image its snapshot and names, and write down that it is whole."""
        place, pool, name = source.place, reservation.pool, reservation.image_name
        handle = self._handle(wanted, place, reservation)
        with open_image(pool, image_id=image_id) as image:
            if source.key_source is not None and not reservation.image_id:
                source.key_source.keys.copy(image, str(handle), source=source.key_source)
            self._names.changes(wanted.parameters.metadata, present=image.metadata(), is_copy=True).apply(image)
            if name not in image.user_snapshots():
                image.create_snapshot(name)
            size_bytes, created_at = image.size_bytes, image.created_at
        if reservation.image_id != image_id:
            place.snapshots.store_image_id(reservation, image_id)
        return Snapshot(
            snapshot_id=str(handle),
            source_volume_id=wanted.volume_id,
            size_bytes=size_bytes,
            created_at=created_at.replace(tzinfo=UTC),
            is_ready=self.is_ready(place, reservation, image_id),
        )

    def _handle(self, wanted: WantedSnapshot, place: Place, reservation: Reservation) -> VolumeId:
        """Return what the CO calls it: in the words of the class, if that names another entry for the same place."""
        return replace(place.handle(reservation), cluster_id=self.cluster_id(wanted.parameters, place))

    def _forget_passphrase(self, wanted: WantedSnapshot, source: Original, reservation: Reservation) -> None:
        if source.key_source is not None:
            forget(source.key_source.keys, str(self._handle(wanted, source.place, reservation)))

    def _undo(self, wanted: WantedSnapshot, source: Original, reservation: Reservation) -> None:
        pool, name = reservation.pool, reservation.image_name
        self._removal.remove_image(source.place, pool, name, snapshots=[name])
        source.withdraw(name)
        self._forget_passphrase(wanted, source, reservation)
        source.place.snapshots.withdraw(reservation)

    def _delete(self, place: Place, reservation: Reservation, handle: str, secrets: Mapping[str, str]) -> None:
        # A CreateSnapshot of the same name must not take over what is being removed.
        names = [reservation.name] if reservation.name else []
        with (
            self._locks.hold(*names),
            self._places.hold_name(reservation.journal_pool, SNAPSHOTS, reservation.name),
        ):
            try:
                self._delete_image(place, reservation)
            except ImageNotFound:
                self._removal.finish_in_trash(place, reservation)
            self._encryption.forget(reservation, handle, secrets)
            place.snapshots.undo(reservation)

    def _delete_image(self, place: Place, reservation: Reservation) -> None:
        pool, name = reservation.pool, reservation.image_name
        with open_image(pool, name=name) as image:
            watchers = lasting_watchers(image)
            if watchers:
                raise SnapshotInUse(f"rbd {image.spec} is still being used: open at {', '.join(map(str, watchers))}")
            image_id = image.image_id
            if name in image.user_snapshots():
                image.remove_snapshot(name)
        self._removal.trash(place, pool, name, image_id)
