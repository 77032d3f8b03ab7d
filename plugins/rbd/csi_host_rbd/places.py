"""Where volumes and snapshots are kept: a cluster, a pool of it, and the journals that know them."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace

from csi_host.errors import CsiError, FailedPrecondition, InvalidArgument, NotFound
from csi_host.locks import Operation, SnapshotLocks, VolumeLocks
from csi_host_rbd.backend import Backend, Cluster
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.failures import PoolNotFound
from csi_host_rbd.cluster_mapping import ClusterMapping
from csi_host_rbd.clusters import ClusterConfig, ClusterNotConfigured
from csi_host_rbd.credentials import Credentials
from csi_host_rbd.errors import ClusterNotServed, GroupSnapshotNotFound, SnapshotNotFound, VolumeNotFound
from csi_host_rbd.group_locks import GroupLocks
from csi_host_rbd.journal import Journal
from csi_host_rbd.migration import is_migrated, parse_migrated
from csi_host_rbd.parameters import VolumeParameters
from csi_host_rbd.reservations import GROUPS, SNAPSHOTS, VOLUMES, Kind, Reservation
from csi_host_rbd.shared_locks import SharedLocks
from csi_host_rbd.volume_id import UUID_LENGTH, VERSION, InvalidVolumeId, VolumeId

_NOUNS = {VOLUMES: "volume", SNAPSHOTS: "snapshot", GROUPS: "group snapshot"}
_LOCK_NOUNS = {VOLUMES: VolumeLocks.noun, SNAPSHOTS: SnapshotLocks.noun, GROUPS: GroupLocks.noun}
_NOT_FOUND: dict[Kind, type[NotFound]] = {
    VOLUMES: VolumeNotFound,
    SNAPSHOTS: SnapshotNotFound,
    GROUPS: GroupSnapshotNotFound,
}


class ClusterAmbiguous(FailedPrecondition):
    """Several clusters may be the one that is meant; the message names them."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A pool of an open cluster, with the journals in it."""

    cluster: Cluster
    pool: Pool
    volumes: Journal
    snapshots: Journal
    groups: Journal

    def handle(self, reservation: Reservation) -> VolumeId:
        """Return what the CO calls a volume, a snapshot or a group snapshot."""
        return VolumeId(
            cluster_id=self.cluster.config.cluster_id, pool_id=reservation.pool.pool_id, uuid=reservation.uuid
        )

    def journal(self, kind: Kind) -> Journal:
        """Return the journal of a kind."""
        return {VOLUMES: self.volumes, SNAPSHOTS: self.snapshots, GROUPS: self.groups}[kind]


class Places:
    """Finds the place of a StorageClass, and of what a handle names.

    For an ``operation`` what the handle names is locked against other controllers, before anything is read of it: as a
    source for Create, Clone and Restore, and as a whole for Delete and Expand. The locks in memory are the caller's.
    """

    def __init__(self, backend: Backend, mapping: ClusterMapping, shared_locks: SharedLocks) -> None:
        self._backend = backend
        self._mapping = mapping
        self._shared = shared_locks

    def cluster_config(self, cluster_id: str) -> ClusterConfig:
        """Return what the configuration says of a cluster; raises ClusterNotConfigured."""
        return self._backend.config(cluster_id)

    def only_cluster_config(self, cluster_id: str) -> ClusterConfig:
        """Return what the configuration says of a cluster that no other can stand in for.

        Raises ClusterNotConfigured, ClusterAmbiguous.
        """
        if partners := list(self._mapping.partners(cluster_id)):
            raise ClusterAmbiguous(f"cluster {cluster_id} may be {', '.join(partners)} as well, by the cluster mapping")
        return self._backend.config(cluster_id)

    @contextmanager
    def of_class(self, parameters: VolumeParameters, credentials: Credentials) -> Iterator[Place]:
        """Yield where volumes of a class are made; raises InvalidArgument naming the parameter."""
        with self._backend.open(parameters.cluster_id, credentials) as cluster:
            if parameters.data_pool:
                _named_pool(cluster, "dataPool", parameters.data_pool)
            place = self._place(cluster, _named_pool(cluster, "pool", parameters.pool))
            _check_handle(place)
            yield place

    @contextmanager
    def static(self, cluster_id: str, pool_name: str, secrets: Mapping[str, str]) -> Iterator[tuple[Cluster, Pool]]:
        """Yield the cluster and the pool that a static volume's context names; raises ClusterNotServed, PoolNotFound.

        Where the mapping has a partner of this cluster that is configured, it is that partner, as in ceph-csi.
        """
        with ExitStack() as stack:
            try:
                cluster = stack.enter_context(self._backend.open_with(self._static_cluster_id(cluster_id), secrets))
            except ClusterNotConfigured as reason:
                raise ClusterNotServed(f"volume_context[clusterID]: {reason}") from reason
            yield cluster, cluster.pool(pool_name)

    @contextmanager
    def volume(
        self,
        handle: str,
        secrets: Mapping[str, str] | None,
        *,
        field: str = "volume_id",
        operation: Operation | None = None,
    ) -> Iterator[tuple[Place, Reservation]]:
        """Yield where the volume of a handle is kept and its reservation; raises VolumeNotFound naming ``field``.

        A volume that was migrated to CSI has an image and no journal entry: its reservation has no uuid.
        """
        found = (
            self._migrated(handle, secrets, field, operation)
            if is_migrated(handle)
            else self._resolved(VOLUMES, field, handle, secrets, operation)
        )
        with found as place_and_reservation:
            yield place_and_reservation

    @contextmanager
    def snapshot(
        self,
        handle: str,
        secrets: Mapping[str, str] | None,
        *,
        field: str = "snapshot_id",
        operation: Operation | None = None,
    ) -> Iterator[tuple[Place, Reservation]]:
        """Yield where the snapshot of a handle is kept and its reservation; raises SnapshotNotFound."""
        with self._resolved(SNAPSHOTS, field, handle, secrets, operation) as found:
            yield found

    @contextmanager
    def group(
        self,
        handle: str,
        secrets: Mapping[str, str] | None,
        *,
        field: str = "group_snapshot_id",
        operation: Operation | None = None,
    ) -> Iterator[tuple[Place, Reservation]]:
        """Yield where the group snapshot of a handle is kept and its reservation; raises GroupSnapshotNotFound."""
        with self._resolved(GROUPS, field, handle, secrets, operation) as found:
            yield found

    def hold_name(self, pool: Pool, kind: Kind, name: str) -> AbstractContextManager[None]:
        """Hold a CO name against other controllers; ``pool`` is the one whose journal has it or is to have it."""
        return self._shared.hold(pool, *([name] if name else []), noun=_LOCK_NOUNS[kind])

    @contextmanager
    def _locked(self, pool: Pool, kind: Kind, key: str, operation: Operation) -> Iterator[None]:
        is_change = operation in {Operation.DELETE, Operation.EXPAND}
        with (
            self._shared.hold(pool, *([key] if is_change else []), noun=_LOCK_NOUNS[kind]),
            self._shared.hold_operation(pool, operation, key),
        ):
            yield

    @contextmanager
    def _resolved(
        self, kind: Kind, field: str, handle: str, secrets: Mapping[str, str] | None, operation: Operation | None
    ) -> Iterator[tuple[Place, Reservation]]:
        volume_id = _parsed(kind, field, handle)
        with ExitStack() as stack:
            missing: CsiError | None = None
            for one in self._everywhere(volume_id):
                try:
                    found = stack.enter_context(self._at(kind, field, one, secrets, operation))
                except (ClusterNotServed, _NOT_FOUND[kind]) as reason:
                    missing = missing or reason
                else:
                    yield found
                    return
            raise missing or _NOT_FOUND[kind](f"{field}: {handle}")

    def _everywhere(self, volume_id: VolumeId) -> Iterator[VolumeId]:
        """Yield a handle, and what it is called at another site."""
        yield volume_id
        for cluster_id, pool_id in self._mapping.elsewhere(volume_id.cluster_id, volume_id.pool_id):
            yield replace(volume_id, cluster_id=cluster_id, pool_id=pool_id)

    @contextmanager
    def _at(
        self,
        kind: Kind,
        field: str,
        volume_id: VolumeId,
        secrets: Mapping[str, str] | None,
        operation: Operation | None,
    ) -> Iterator[tuple[Place, Reservation]]:
        with ExitStack() as stack:
            try:
                cluster = stack.enter_context(self._backend.open_with(volume_id.cluster_id, secrets))
                place = self._place(cluster, cluster.pool_with_id(volume_id.pool_id))
            except ClusterNotConfigured as reason:
                raise ClusterNotServed(f"{field}: {reason}") from reason
            except PoolNotFound as reason:
                raise _NOT_FOUND[kind](f"{field}: {volume_id}: {reason}") from reason
            if operation is not None:
                # Under its name here: a handle of another site and one of this site may be the same volume.
                stack.enter_context(self._locked(place.pool, kind, lock_key(str(volume_id)), operation))
            reservation = place.journal(kind).read(volume_id.uuid)
            if reservation is None:
                raise _NOT_FOUND[kind](f"{field}: the journal has no {_NOUNS[kind]} {volume_id}")
            yield place, reservation

    def _static_cluster_id(self, cluster_id: str) -> str:
        configured = self._backend.cluster_ids()
        return next((one for one in self._mapping.partners(cluster_id) if one in configured), cluster_id)

    @contextmanager
    def _migrated(
        self, handle: str, secrets: Mapping[str, str] | None, field: str, operation: Operation | None
    ) -> Iterator[tuple[Place, Reservation]]:
        try:
            migrated = parse_migrated(handle)
        except InvalidVolumeId as reason:
            raise VolumeNotFound(f"{field}: {handle!r}: {reason}") from reason
        with ExitStack() as stack:
            try:
                cluster = stack.enter_context(self._backend.open_with(migrated.cluster_id, secrets))
                place = self._place(cluster, cluster.pool(migrated.pool))
            except ClusterNotConfigured as reason:
                raise ClusterNotServed(f"{field}: {reason}") from reason
            except PoolNotFound as reason:
                raise VolumeNotFound(f"{field}: {handle}: {reason}") from reason
            if operation is not None:
                stack.enter_context(self._locked(place.pool, VOLUMES, handle, operation))
            yield (
                place,
                Reservation(name="", uuid="", pool=place.pool, journal_pool=place.pool, image_name=migrated.image),
            )

    def _place(self, cluster: Cluster, pool: Pool) -> Place:
        return Place(
            cluster=cluster,
            pool=pool,
            volumes=self._backend.journal(cluster, pool, VOLUMES),
            snapshots=self._backend.journal(cluster, pool, SNAPSHOTS),
            groups=self._backend.journal(cluster, pool, GROUPS),
        )


def _parsed(kind: Kind, field: str, handle: str) -> VolumeId:
    try:
        return VolumeId.parse(handle)
    except InvalidVolumeId as reason:
        raise _NOT_FOUND[kind](f"{field}: {handle!r} is no handle of this driver: {reason}") from reason


def lock_key(handle: str) -> str:
    """Return what a handle is locked by: one volume has one key, in whatever case its numbers are written."""
    try:
        return str(replace(VolumeId.parse(handle), version=VERSION))
    except InvalidVolumeId:
        return handle


def _named_pool(cluster: Cluster, parameter: str, name: str) -> Pool:
    try:
        return cluster.pool(name)
    except PoolNotFound as reason:
        raise InvalidArgument(f"parameters[{parameter}]: {reason}") from reason


def _check_handle(place: Place) -> None:
    """Raise InvalidArgument for a cluster id that no handle has room for, before anything is made."""
    cluster_id = place.cluster.config.cluster_id
    try:
        VolumeId(cluster_id=cluster_id, pool_id=place.pool.pool_id, uuid="0" * UUID_LENGTH).encode()
    except InvalidVolumeId as reason:
        raise InvalidArgument(f"parameters[clusterID]: {reason}") from reason
