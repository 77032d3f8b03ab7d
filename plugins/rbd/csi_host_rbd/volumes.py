"""A volume's life on the cluster: made, found, grown and deleted.

What each failure leaves behind, and who mends it:

* the process dies between two steps of ``create``: a reservation, perhaps with an image; the retry takes it over;
* an operation times out: its outcome is unknown, so nothing is undone and the code is not final; the retry resumes;
* an operation fails for good: image and reservation are undone; if that fails as well, the code is not final;
* the process dies between two steps of ``delete``: the image is in the trash or gone, and the journal still knows
  the handle; the retry goes on from there;
* two callers: the locks of the name and of the handle let one through.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace

from csi_host.capacity import CapacityRange
from csi_host.errors import Aborted, CsiError, InvalidArgument
from csi_host.locks import Operation, OperationLocks, VolumeLocks
from csi_host_rbd.backend import Backend, Cluster
from csi_host_rbd.ceph import image as images
from csi_host_rbd.ceph import image_names, trash
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.create import ImageOptions, create_image
from csi_host_rbd.ceph.failures import ImageExists, ImageNotFound, PoolNotFound
from csi_host_rbd.ceph.image import Image
from csi_host_rbd.ceph.tasks import remove_trashed
from csi_host_rbd.clusters import ClusterNotConfigured
from csi_host_rbd.credentials import Credentials
from csi_host_rbd.errors import ClusterNotServed, VolumeDiffers, VolumeInUse, VolumeIsSecondary, VolumeNotFound
from csi_host_rbd.journal import Journal, Reservation
from csi_host_rbd.parameters import VolumeParameters
from csi_host_rbd.sizes import image_size
from csi_host_rbd.volume_id import UUID_LENGTH, VERSION, InvalidVolumeId, VolumeId

log = logging.getLogger(__name__)

# The image between a cloned volume and its source, in ceph-csi's layout: it goes with the volume.
TEMPORARY_SUFFIX = "-temp"
_TAKE_OVER_ATTEMPTS = 5
_TAKE_OVER_PAUSE_SECONDS = 0.2
CLUSTER_NAME_METADATA = "csi.ceph.com/cluster/name"


@dataclass(frozen=True, kw_only=True)
class WantedVolume:
    """What CreateVolume asks for: ``size_bytes`` is already rounded, ``capacity`` what the caller accepts."""

    name: str
    size_bytes: int
    capacity: CapacityRange
    parameters: VolumeParameters


@dataclass(frozen=True, kw_only=True)
class Volume:
    """A volume that exists; ``size_bytes`` is the image's."""

    volume_id: VolumeId
    size_bytes: int
    pool: str
    journal_pool: str
    namespace: str
    image_name: str


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a volume is kept: its cluster, and the pool with the journal that knows it."""

    cluster: Cluster
    journal: Journal

    def volume(self, reservation: Reservation, size_bytes: int) -> Volume:
        return Volume(
            volume_id=VolumeId(
                cluster_id=self.cluster.config.cluster_id, pool_id=reservation.pool.pool_id, uuid=reservation.uuid
            ),
            size_bytes=size_bytes,
            pool=reservation.pool.name,
            journal_pool=reservation.journal_pool.name,
            namespace=reservation.pool.namespace,
            image_name=reservation.image_name,
        )


class Volumes:
    """The volumes of the clusters in the configuration.

    ``manager_timeout`` is in seconds; ``cluster_name`` is written on every image when ``sets_metadata``, beside the
    names that the StorageClass gives.
    """

    def __init__(
        self,
        *,
        backend: Backend,
        volume_locks: VolumeLocks,
        operation_locks: OperationLocks,
        manager_timeout: float,
        sets_metadata: bool,
        cluster_name: str,
    ) -> None:
        self._backend = backend
        self._locks = volume_locks
        self._operations = operation_locks
        self._manager_timeout = manager_timeout
        self._sets_metadata = sets_metadata
        self._cluster_name = cluster_name

    def create(self, wanted: WantedVolume, credentials: Credentials) -> Volume:
        """Make the volume, or return the one that an earlier call of this name made.

        Raises VolumeDiffers when the name has a volume of a size that does not fit, OperationPending when another
        call is at it.
        """
        parameters = wanted.parameters
        with self._locks.hold(wanted.name), self._backend.open(parameters.cluster_id, credentials) as cluster:
            pool = _pool_of_class(cluster, parameters)
            _check_handle(cluster, pool)
            place = self._place(cluster, pool)
            found = place.journal.find(wanted.name)
            if found is not None:
                return self._resume(wanted, place, found)
            return self._make(wanted, place)

    def find(self, handle: str, secrets: Mapping[str, str]) -> Volume:
        """Return the volume of a handle; raises VolumeNotFound."""
        with (
            self._resolved(handle, secrets) as (place, reservation),
            _opened(reservation, handle, read_only=True) as image,
        ):
            return place.volume(reservation, image.size_bytes)

    def expand(self, handle: str, capacity: CapacityRange, secrets: Mapping[str, str]) -> Volume:
        """Grow a volume to what is required, never beyond the limit, and never shrink it; raises VolumeNotFound."""
        wanted_bytes = image_size(capacity) if capacity.required_bytes else 0
        with (
            self._locks.hold(_lock_key(handle)),
            self._resolved(handle, secrets) as (place, reservation),
            self._operations.hold(Operation.EXPAND, _lock_key(handle)),
            _opened(reservation, handle, read_only=False) as image,
        ):
            capacity.check_limit(max(image.size_bytes, wanted_bytes))
            if image.size_bytes < wanted_bytes:
                image.resize(wanted_bytes)
            return place.volume(reservation, image.size_bytes)

    def delete(self, handle: str, secrets: Mapping[str, str]) -> None:
        """Delete a volume; fine when there is none. Raises VolumeInUse naming who has the image open."""
        with self._locks.hold(_lock_key(handle)), self._operations.hold(Operation.DELETE, _lock_key(handle)):
            try:
                with self._resolved(handle, secrets) as (place, reservation):
                    self._delete(place, reservation)
            except VolumeNotFound as reason:
                log.info(f"nothing to delete: {reason}")

    def _resume(self, wanted: WantedVolume, place: _Place, found: Reservation) -> Volume:
        """Take over what an earlier call of this name left: a whole volume, or the beginning of one."""
        try:
            return self._accept(wanted, place, found)
        except ImageNotFound:
            if not found.image_id:
                # The uuid is kept: an image whose creation timed out may still appear, and then has this name.
                return self._make_image(wanted, place, found)
        # There was a whole image, so this is a deletion that was cut off. It is finished first, and the new volume gets
        # a handle of its own: a DeleteVolume of the old one may be on its way.
        self._finish_in_trash(place, found)
        place.journal.undo(found)
        return self._make(wanted, place)

    def _make(self, wanted: WantedVolume, place: _Place) -> Volume:
        parameters = wanted.parameters
        reservation = place.journal.reserve(wanted.name, prefix=parameters.name_prefix, owner=parameters.owner)
        return self._make_image(wanted, place, reservation)

    def _accept(self, wanted: WantedVolume, place: _Place, found: Reservation) -> Volume:
        """Return the volume whose image is there, with what is missing around it; raises ImageNotFound."""
        with images.open_image(found.pool, name=found.image_name, read_only=True) as image:
            size_bytes, image_id, metadata = image.size_bytes, image.image_id, image.metadata()
        _check_size(wanted, size_bytes)
        if found.image_id != image_id:
            place.journal.store_image_id(found, image_id)
        self._set_metadata(wanted, found.pool, image_id, present=metadata)
        return place.volume(found, size_bytes)

    def _make_image(self, wanted: WantedVolume, place: _Place, reservation: Reservation) -> Volume:
        try:
            create_image(reservation.pool, reservation.image_name, wanted.size_bytes, _image_options(wanted.parameters))
            image_id = image_names.read_image_id(reservation.pool, reservation.image_name)
            place.journal.store_image_id(reservation, image_id)
            self._set_metadata(wanted, reservation.pool, image_id, present={})
        except ImageExists:
            return self._take_over(wanted, place, reservation)
        except Exception as error:
            # Only after an error that leaves the outcome open the retry goes on from here.
            if not isinstance(error, CsiError) or error.is_final:
                self._undo(place, reservation, because_of=error)
            raise
        return place.volume(reservation, wanted.size_bytes)

    def _take_over(self, wanted: WantedVolume, place: _Place, reservation: Reservation) -> Volume:
        """Go on where the image is there but could not be opened: another controller is making it, or was cut off.

        The other one is given time, as removing what it is just making would break it.
        """
        for _ in range(_TAKE_OVER_ATTEMPTS):
            time.sleep(_TAKE_OVER_PAUSE_SECONDS)
            with suppress(ImageNotFound):
                return self._accept(wanted, place, reservation)
        image_names.remove_remnants(reservation.pool, reservation.image_name)
        raise Aborted(f"the beginnings of image {reservation.image_name} were removed; ask again to have it made")

    def _undo(self, place: _Place, reservation: Reservation, *, because_of: Exception) -> None:
        try:
            self._remove_image(place, reservation.pool, reservation.image_name)
            place.journal.undo(reservation)
        except CsiError as error:
            first = because_of if isinstance(because_of, CsiError) else type(because_of).__name__
            raise Aborted(f"{first}; and what was made could not be removed yet: {error}") from because_of

    def _set_metadata(self, wanted: WantedVolume, pool: Pool, image_id: str, *, present: Mapping[str, str]) -> None:
        if not self._sets_metadata:
            return
        metadata = dict(wanted.parameters.metadata)
        if self._cluster_name:
            metadata[CLUSTER_NAME_METADATA] = self._cluster_name
        missing = {name: value for name, value in metadata.items() if present.get(name) != value}
        if missing:
            with images.open_image(pool, image_id=image_id) as image:
                for name, value in missing.items():
                    image.set_metadata(name, value)

    def _delete(self, place: _Place, reservation: Reservation) -> None:
        # A CreateVolume of the same name must not take over what is being removed.
        with self._locks.hold(*([reservation.name] if reservation.name else [])):
            try:
                self._delete_image(place, reservation)
            except ImageNotFound:
                self._finish_in_trash(place, reservation)
            place.journal.undo(reservation)

    def _delete_image(self, place: _Place, reservation: Reservation) -> None:
        pool, name = reservation.pool, reservation.image_name
        with images.open_image(pool, name=name, read_only=True) as image:
            is_owned_here = _check_deletable(image, pool.spec(name), place.cluster.config.mirror_daemon_count)
            image_id = image.image_id
        if is_owned_here:
            self._remove_image(place, pool, name + TEMPORARY_SUFFIX)
            self._trash(place, pool, name, image_id)

    def _finish_in_trash(self, place: _Place, reservation: Reservation) -> None:
        """Go on with a deletion that stopped after the image had gone to the trash."""
        pool, name = reservation.pool, reservation.image_name
        self._remove_image(place, pool, name + TEMPORARY_SUFFIX)
        image_names.remove_remnants(pool, name)
        known = reservation.image_id
        trashed = [known] if known and trash.is_in_trash(pool, known) else trash.find_in_trash(pool, name)
        for image_id in trashed:
            self._add_removal(place, pool, image_id)

    def _remove_image(self, place: _Place, pool: Pool, name: str) -> None:
        """Take away an image, or the remnants of one; fine when there is none."""
        if not image_names.image_exists(pool, name):
            return
        try:
            self._trash(place, pool, name, image_names.read_image_id(pool, name))
        except ImageNotFound:
            image_names.remove_remnants(pool, name)

    def _trash(self, place: _Place, pool: Pool, name: str, image_id: str) -> None:
        """Put an image into the trash, which takes the same time for every size, and have the manager empty it."""
        trash.trash_move(pool, name)
        self._add_removal(place, pool, image_id)

    def _add_removal(self, place: _Place, pool: Pool, image_id: str) -> None:
        remove_trashed(place.cluster.connection, pool, image_id, timeout=self._manager_timeout)

    def _place(self, cluster: Cluster, pool: Pool) -> _Place:
        return _Place(cluster=cluster, journal=self._backend.journal(cluster, pool))

    @contextmanager
    def _resolved(self, handle: str, secrets: Mapping[str, str]) -> Iterator[tuple[_Place, Reservation]]:
        """Yield where the volume of ``handle`` is kept and its reservation; raises VolumeNotFound."""
        try:
            volume_id = VolumeId.parse(handle)
        except InvalidVolumeId as reason:
            raise VolumeNotFound(f"volume_id: {handle!r} is no handle of this driver: {reason}") from reason
        credentials = Credentials.from_secrets(secrets)
        with ExitStack() as stack:
            try:
                cluster = stack.enter_context(self._backend.open(volume_id.cluster_id, credentials))
                place = self._place(cluster, cluster.pool_with_id(volume_id.pool_id))
            except ClusterNotConfigured as reason:
                raise ClusterNotServed(f"volume_id: {reason}") from reason
            except PoolNotFound as reason:
                raise VolumeNotFound(f"volume_id: {handle}: {reason}") from reason
            reservation = place.journal.read(volume_id.uuid)
            if reservation is None:
                raise VolumeNotFound(f"volume_id: the journal has no volume {handle}")
            yield place, reservation


def _pool_of_class(cluster: Cluster, parameters: VolumeParameters) -> Pool:
    if parameters.data_pool:
        _named_pool(cluster, "dataPool", parameters.data_pool)
    return _named_pool(cluster, "pool", parameters.pool)


def _named_pool(cluster: Cluster, parameter: str, name: str) -> Pool:
    try:
        return cluster.pool(name)
    except PoolNotFound as reason:
        raise InvalidArgument(f"parameters[{parameter}]: {reason}") from reason


def _check_handle(cluster: Cluster, pool: Pool) -> None:
    """Raise InvalidArgument for a cluster id that no handle has room for, before anything is made."""
    try:
        VolumeId(cluster_id=cluster.config.cluster_id, pool_id=pool.pool_id, uuid="0" * UUID_LENGTH).encode()
    except InvalidVolumeId as reason:
        raise InvalidArgument(f"parameters[clusterID]: {reason}") from reason


def _lock_key(handle: str) -> str:
    """Return what a handle is locked by: one volume has one key, in whatever case its numbers are written."""
    try:
        return str(replace(VolumeId.parse(handle), version=VERSION))
    except InvalidVolumeId:
        return handle


@contextmanager
def _opened(reservation: Reservation, handle: str, *, read_only: bool) -> Iterator[Image]:
    try:
        with images.open_image(reservation.pool, name=reservation.image_name, read_only=read_only) as image:
            yield image
    except ImageNotFound as reason:
        raise VolumeNotFound(f"volume_id: {handle}: {reason}") from reason


def _image_options(parameters: VolumeParameters) -> ImageOptions:
    return ImageOptions(
        features=parameters.features,
        order=parameters.striping.order,
        stripe_unit_bytes=parameters.striping.unit_bytes,
        stripe_count=parameters.striping.count,
        data_pool=parameters.data_pool,
    )


def _check_size(wanted: WantedVolume, size_bytes: int) -> None:
    limit_bytes = wanted.capacity.limit_bytes
    if size_bytes < wanted.capacity.required_bytes or 0 < limit_bytes < size_bytes:
        raise VolumeDiffers(
            f"name: {wanted.name} is a volume of {size_bytes} bytes already, and capacity_range asks for "
            f"{wanted.capacity.required_bytes}" + (f" to {limit_bytes}" if limit_bytes else " or more")
        )


def _check_deletable(image: Image, spec: str, mirror_daemon_count: int) -> bool:
    """Whether the image is this cluster's to remove; raises VolumeInUse, VolumeIsSecondary."""
    mirroring = image.mirroring()
    if mirroring.is_enabled and not mirroring.is_primary:
        if not image.is_replaying():
            raise VolumeIsSecondary(f"rbd {spec} is a mirror's copy that is not being replayed; promote or resync it")
        # The primary's cluster owns it, and its mirror daemon removes this copy when the primary goes.
        return False
    watchers = image.watchers()
    if len(watchers) > (mirror_daemon_count if mirroring.is_enabled else 0):
        raise VolumeInUse(f"rbd {spec} is still being used: open at {', '.join(map(str, watchers))}")
    return True
