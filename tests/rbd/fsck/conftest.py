from collections.abc import Iterator
from contextlib import closing

import pytest

from csi_host_rbd.ceph.cluster import Connection, Pool
from csi_host_rbd.ceph.connections import Connections, Timeouts
from csi_host_rbd.credentials import Credentials
from csi_host_rbd.devcluster import DevCluster
from csi_host_rbd.fsck.look import Look
from csi_host_rbd.testing.fsck_arrangements import Ground
from csi_host_rbd.testing.fsck_kit import Checker
from csi_host_rbd.testing.pools import PoolView


@pytest.fixture
def connection(ceph: DevCluster) -> Iterator[Connection]:
    with closing(Connections(timeouts=Timeouts(operation=20.0))) as connections:
        credentials = Credentials.from_secrets(ceph.secrets())
        with connections.use(",".join(ceph.monitors), credentials) as one:
            yield one


@pytest.fixture
def store(connection: Connection, pool: PoolView) -> Pool:
    """The same place as ``pool``, as the code under test sees it."""
    return connection.pool(pool.name, pool.namespace)


@pytest.fixture
def checker(connection: Connection, store: Pool, ceph: DevCluster) -> Checker:
    return Checker(
        look=Look(
            pool=store, connection=connection, instance_id="default", cluster_id=ceph.cluster_id, manager_timeout=15.0
        )
    )


@pytest.fixture
def ground(pool: PoolView, store: Pool) -> Ground:
    return Ground(pool=pool, store=store)
