"""What fsck costs: operations and memory for each entry of the journal."""

import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.connections import Connections, Timeouts
from csi_host_rbd.credentials import Credentials
from csi_host_rbd.devcluster import DevCluster
from csi_host_rbd.testing.fsck_kit import Checker, fabricate
from csi_host_rbd.testing.operations import OperationCounter
from csi_host_rbd.testing.pools import PoolView

pytestmark = pytest.mark.ceph

_FEW, _MANY = 500, 3000


@pytest.fixture
def counter(tmp_path_factory: pytest.TempPathFactory) -> OperationCounter:
    return OperationCounter(Path(tmp_path_factory.mktemp("a")))


@pytest.fixture
def counted(checker: Checker, ceph: DevCluster, pool: PoolView, counter: OperationCounter) -> Iterator[Checker]:
    with closing(Connections(timeouts=Timeouts(), settings=counter.settings)) as connections:
        credentials = Credentials.from_secrets(ceph.secrets())
        with connections.use(",".join(ceph.monitors), credentials) as connection:
            store = connection.pool(pool.name, pool.namespace)
            yield replace(checker, look=replace(checker.look, pool=store, connection=connection))


def test_a_volume_costs_three_operations_and_a_page_is_cheap(
    counted: Checker, counter: OperationCounter, store: Pool
) -> None:
    fabricate(store, _MANY)
    with counter.counting() as count:
        assert counted.found() == []
    pages = 8 * (_MANY // 512 + 1) + 100
    assert count.operations <= 3 * _MANY + pages


def test_memory_grows_by_less_than_half_a_kilobyte_for_each_volume(checker: Checker, store: Pool) -> None:
    fabricate(store, _FEW)
    checker.run()
    few = _peak_bytes(checker)
    fabricate(store, _MANY)
    many = _peak_bytes(checker)
    assert many - few < 512 * _MANY


def _peak_bytes(checker: Checker) -> int:
    tracemalloc.start()
    try:
        assert checker.found() == []
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
