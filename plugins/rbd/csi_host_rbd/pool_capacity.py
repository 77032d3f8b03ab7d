"""How much can still be stored, as GetCapacity answers it.

It is a pool's ``max_avail``, which the monitors reckon from the fullest of its OSDs and its replication or erasure
code, bounded by the pool's quota; 0 for a pool that takes no writes. Images are thin, so this says how much of new
volumes can be filled, not how big they can be made: no largest volume size is answered, as a scheduler would take it
instead of the capacity.

A class whose cluster or pool does not exist is INVALID_ARGUMENT, as it is for CreateVolume: external-provisioner tells
the error in its log and asks again later, while a capacity of 0 would look like a full cluster.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from csi_host.access import VolumeAccess
from csi_host.capacity import MIB
from csi_host.errors import InvalidArgument
from csi_host_rbd.backend import Backend, Cluster
from csi_host_rbd.ceph.failures import BackendUnavailable, PoolNotFound
from csi_host_rbd.ceph.usage import PoolUsage
from csi_host_rbd.pool_usage import PoolFigures
from csi_host_rbd.topology import TopologyPool, parse_pools
from csi_host_rbd.uses import check_use

MINIMUM_SIZE_BYTES = MIB


@dataclass(frozen=True, kw_only=True)
class CapacityTarget:
    """Where a class puts its volumes: images in ``pool``, their data in ``data_pool`` where that is not ""."""

    cluster_id: str
    pool: str
    data_pool: str = ""


def targets_of(parameters: Mapping[str, str], segments: Mapping[str, str] | None) -> list[CapacityTarget]:
    """Return where volumes of a StorageClass may go, for nodes with these topology ``segments`` if there are any.

    Of the pools that a class has for a topology CreateVolume takes the first that serves it. Raises InvalidArgument.
    external-provisioner hands over the class as it is, keys of ``csi.storage.k8s.io/`` included, so only what matters
    here is looked at.
    """
    cluster_id, pool = parameters.get("clusterID", ""), parameters.get("pool", "")
    pools = parse_pools(parameters.get("topologyConstrainedPools", ""))
    for name, is_missing in (("clusterID", not cluster_id), ("pool", not pool and not pools)):
        if is_missing:
            raise InvalidArgument(f"parameters[{name}]: required")
    if segments is not None and pools:
        pools = tuple(one for one in pools if one.serves(segments))[:1]
    elif pool:
        pools = (TopologyPool(pool=pool, data_pool=parameters.get("dataPool", "")),)
    return [CapacityTarget(cluster_id=cluster_id, pool=one.pool, data_pool=one.data_pool) for one in pools]


class Capacities:
    """The capacities of all clusters' pools."""

    def __init__(self, *, backend: Backend, figures: PoolFigures) -> None:
        self._backend = backend
        self._figures = figures

    def available_bytes(self, targets: Sequence[CapacityTarget], uses: Sequence[VolumeAccess]) -> int:
        """Return what the roomiest of the targets can still take; 0 when there is none, or no image serves a use."""
        if not all(_is_served(use) for use in uses):
            return 0
        return max(map(self._available_bytes, targets), default=0)

    def _available_bytes(self, target: CapacityTarget) -> int:
        with self._backend.open_with(target.cluster_id, None) as cluster:
            pool = self._usage(cluster, "pool", target.pool).available_bytes
            if not target.data_pool:
                return pool
            data = self._usage(cluster, "dataPool", target.data_pool).available_bytes
            # The image's own objects are small, but without them there is no image.
            return data if pool else 0

    def available_anywhere_bytes(self, uses: Sequence[VolumeAccess]) -> int:
        """Return what the clusters can still take: of each its roomiest pool, as the pools share its disks."""
        if not all(_is_served(use) for use in uses):
            return 0
        return sum(self._roomiest_bytes(cluster_id) for cluster_id in self._backend.cluster_ids())

    def _roomiest_bytes(self, cluster_id: str) -> int:
        with self._backend.open_with(cluster_id, None) as cluster:
            figures = self._figures.of(cluster)
            pool_ids = [pool.pool_id for pool in cluster.pools()]
            return max((figures[one].available_bytes for one in pool_ids if one in figures), default=0)

    def _usage(self, cluster: Cluster, parameter: str, name: str) -> PoolUsage:
        try:
            pool_id = cluster.pool(name).pool_id
        except PoolNotFound as reason:
            raise InvalidArgument(f"parameters[{parameter}]: {reason}") from reason
        found = self._figures.of(cluster, needed=pool_id).get(pool_id)
        if found is None:
            raise BackendUnavailable(f"the monitors do not know yet how much room pool {name} has; ask again")
        return found


def _is_served(use: VolumeAccess) -> bool:
    try:
        check_use(use, "volume_capabilities")
    except InvalidArgument:
        return False
    return True
