"""The clusters as the RPCs see them: opened by id, with pools in the configured namespace and the pools' journals."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from csi_host_rbd.ceph.cluster import Connection, Pool
from csi_host_rbd.ceph.connections import Connections
from csi_host_rbd.ceph.failures import PoolNotFound
from csi_host_rbd.clusters import ClusterConfig, Clusters
from csi_host_rbd.controller_secret import ControllerSecret
from csi_host_rbd.credentials import Credentials
from csi_host_rbd.journal import Journal
from csi_host_rbd.reservations import VOLUMES, Kind

# What Ceph calls a pool's use for images.
_APPLICATION = "rbd"


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A cluster with an open connection; its pools are seen through the configured RADOS namespace."""

    config: ClusterConfig
    connection: Connection

    def pool(self, name: str) -> Pool:
        """Return a pool by name; raises PoolNotFound."""
        return self.connection.pool(name, self.config.rados_namespace)

    def pools(self) -> list[Pool]:
        """Return the pools that images may be in, by id."""
        found = []
        for pool_id in self.connection.pool_ids_for(_APPLICATION):
            # One that was deleted a moment ago is none of them.
            with suppress(PoolNotFound):
                found.append(self.pool_with_id(pool_id))
        return found

    def pool_with_id(self, pool_id: int) -> Pool:
        """Return a pool by id; raises PoolNotFound."""
        return self.connection.pool_with_id(pool_id, self.config.rados_namespace)

    def pool_at(self, pool_id: int, namespace: str) -> Pool:
        """Return a pool by id through a RADOS namespace of choice: a clone's parent may be in another one."""
        return self.connection.pool_with_id(pool_id, namespace)


class Backend:
    """All clusters of the configuration; ``controller_secret`` is the user of calls that bring none."""

    def __init__(
        self,
        *,
        clusters: Clusters,
        connections: Connections,
        instance_id: str,
        controller_secret: ControllerSecret | None = None,
    ) -> None:
        self.controller_secret = controller_secret or ControllerSecret(None)
        self._clusters = clusters
        self._connections = connections
        self._instance_id = instance_id

    def cluster_ids(self) -> list[str]:
        """Return the ids of all clusters, in order; raises ClustersFileInvalid."""
        return self._clusters.ids()

    def config(self, cluster_id: str) -> ClusterConfig:
        """Return what the configuration says of a cluster; raises ClusterNotConfigured."""
        return self._clusters.find(cluster_id)

    @contextmanager
    def open(self, cluster_id: str, credentials: Credentials) -> Iterator[Cluster]:
        """Yield a cluster; raises ClusterNotConfigured, and what connecting fails with."""
        config = self._clusters.find(cluster_id)
        with self._connections.use(config.mon_host, credentials) as connection:
            yield Cluster(config=config, connection=connection)

    @contextmanager
    def open_with(self, cluster_id: str, secrets: Mapping[str, str] | None) -> Iterator[Cluster]:
        """Do so as the user of a call's secrets, or as the driver's own where it brings none (None: it never does)."""
        with self.open(cluster_id, self.controller_secret.credentials(secrets, cluster_id)) as cluster:
            yield cluster

    def journal(self, cluster: Cluster, pool: Pool, kind: Kind = VOLUMES) -> Journal:
        """Return the journal of volumes, or of snapshots, in a pool."""
        return Journal(pool=pool, instance_id=self._instance_id, pool_with_id=cluster.pool_with_id, kind=kind)
