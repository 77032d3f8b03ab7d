"""Where volumes and snapshots are kept: a cluster, a pool of it, and the journals that know them."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from csi_host.errors import InvalidArgument, NotFound
from csi_host_rbd.backend import Backend, Cluster
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.failures import PoolNotFound
from csi_host_rbd.clusters import ClusterConfig, ClusterNotConfigured
from csi_host_rbd.credentials import Credentials
from csi_host_rbd.errors import ClusterNotServed, SnapshotNotFound, VolumeNotFound
from csi_host_rbd.journal import SNAPSHOTS, VOLUMES, Journal, Kind, Reservation
from csi_host_rbd.parameters import VolumeParameters
from csi_host_rbd.volume_id import UUID_LENGTH, VERSION, InvalidVolumeId, VolumeId

_NOUNS = {VOLUMES: "volume", SNAPSHOTS: "snapshot"}
_NOT_FOUND: dict[Kind, type[NotFound]] = {VOLUMES: VolumeNotFound, SNAPSHOTS: SnapshotNotFound}


@dataclass(frozen=True, kw_only=True)
class Place:
    """A pool of an open cluster, with the journals in it."""

    cluster: Cluster
    pool: Pool
    volumes: Journal
    snapshots: Journal

    def handle(self, reservation: Reservation) -> VolumeId:
        """Return what the CO calls a volume or a snapshot."""
        return VolumeId(
            cluster_id=self.cluster.config.cluster_id, pool_id=reservation.pool.pool_id, uuid=reservation.uuid
        )

    def journal(self, kind: Kind) -> Journal:
        """Return the journal of a kind."""
        return self.volumes if kind == VOLUMES else self.snapshots


class Places:
    """Finds the place of a StorageClass, and of what a handle names."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def cluster_config(self, cluster_id: str) -> ClusterConfig:
        """Return what the configuration says of a cluster; raises ClusterNotConfigured."""
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
    def volume(
        self, handle: str, secrets: Mapping[str, str], *, field: str = "volume_id"
    ) -> Iterator[tuple[Place, Reservation]]:
        """Yield where the volume of a handle is kept and its reservation; raises VolumeNotFound naming ``field``."""
        with self._resolved(VOLUMES, field, handle, secrets) as found:
            yield found

    @contextmanager
    def snapshot(
        self, handle: str, secrets: Mapping[str, str], *, field: str = "snapshot_id"
    ) -> Iterator[tuple[Place, Reservation]]:
        """Yield where the snapshot of a handle is kept and its reservation; raises SnapshotNotFound."""
        with self._resolved(SNAPSHOTS, field, handle, secrets) as found:
            yield found

    @contextmanager
    def _resolved(
        self, kind: Kind, field: str, handle: str, secrets: Mapping[str, str]
    ) -> Iterator[tuple[Place, Reservation]]:
        not_found = _NOT_FOUND[kind]
        try:
            volume_id = VolumeId.parse(handle)
        except InvalidVolumeId as reason:
            raise not_found(f"{field}: {handle!r} is no handle of this driver: {reason}") from reason
        credentials = Credentials.from_secrets(secrets)
        with ExitStack() as stack:
            try:
                cluster = stack.enter_context(self._backend.open(volume_id.cluster_id, credentials))
                place = self._place(cluster, cluster.pool_with_id(volume_id.pool_id))
            except ClusterNotConfigured as reason:
                raise ClusterNotServed(f"{field}: {reason}") from reason
            except PoolNotFound as reason:
                raise not_found(f"{field}: {handle}: {reason}") from reason
            reservation = place.journal(kind).read(volume_id.uuid)
            if reservation is None:
                raise not_found(f"{field}: the journal has no {_NOUNS[kind]} {handle}")
            yield place, reservation

    def _place(self, cluster: Cluster, pool: Pool) -> Place:
        return Place(
            cluster=cluster,
            pool=pool,
            volumes=self._backend.journal(cluster, pool, VOLUMES),
            snapshots=self._backend.journal(cluster, pool, SNAPSHOTS),
        )


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
