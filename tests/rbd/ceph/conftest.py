import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from csi_host_rbd.ceph.cluster import Connection, Pool
from csi_host_rbd.ceph.connections import Connections, Timeouts
from csi_host_rbd.credentials import Credentials
from csi_host_rbd.devcluster import DevCluster
from csi_host_rbd.testing.operations import OperationCounter
from csi_host_rbd.testing.pools import PoolView

# Long enough for a busy machine, short enough to wait for.
TIMEOUTS = Timeouts(connect=5.0, operation=2.0)


@pytest.fixture
def credentials(ceph: DevCluster) -> Credentials:
    return Credentials.from_secrets(ceph.secrets())


@pytest.fixture
def mon_host(ceph: DevCluster) -> str:
    return ",".join(ceph.monitors)


@pytest.fixture
def make_connections() -> Iterator[Callable[..., Connections]]:
    made: list[Connections] = []

    def make(**changes: Any) -> Connections:
        made.append(Connections(**{"timeouts": TIMEOUTS, **changes}))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def counter() -> Iterator[OperationCounter]:
    # Not pytest's own directory: its paths are longer than a socket's may be.
    with tempfile.TemporaryDirectory(prefix="csi-asok-") as directory:
        yield OperationCounter(Path(directory))


@pytest.fixture
def connection(
    make_connections: Callable[..., Connections], counter: OperationCounter, mon_host: str, credentials: Credentials
) -> Iterator[Connection]:
    with make_connections(settings=counter.settings).use(mon_host, credentials) as one:
        yield one


@pytest.fixture
def store(connection: Connection, pool: PoolView) -> Pool:
    """The same place as ``pool``, as the code under test sees it."""
    return connection.pool(pool.name, pool.namespace)


@pytest.fixture
def hung(ceph: DevCluster) -> Callable[[], AbstractContextManager[None]]:
    @contextmanager
    def hang() -> Iterator[None]:
        ceph.stop_osd()
        try:
            yield
        finally:
            ceph.resume_osd()

    return hang
