from collections.abc import Callable, Iterator

import pytest

from csi_host_rbd.ceph import image_names, trash
from csi_host_rbd.ceph.cluster import Connection, Pool
from csi_host_rbd.ceph.connections import Connections
from csi_host_rbd.ceph.create import ImageOptions, create_image
from csi_host_rbd.ceph.failures import BackendTimeout
from csi_host_rbd.ceph.tasks import remove_trashed
from csi_host_rbd.credentials import Credentials
from csi_host_rbd.devcluster import DevCluster
from csi_host_rbd.testing.pools import PoolView

pytestmark = pytest.mark.ceph

MIB = 1024**2


def _trashed(store: Pool) -> str:
    create_image(store, "one", 64 * MIB, ImageOptions())
    image_id = image_names.read_image_id(store, "one")
    trash.trash_move(store, "one")
    return image_id


def test_the_manager_removes_what_is_in_the_trash_and_may_be_asked_twice(
    connection: Connection, store: Pool, pool: PoolView
) -> None:
    image_id = _trashed(store)
    remove_trashed(connection, store, image_id, timeout=10)
    remove_trashed(connection, store, image_id, timeout=10)
    pool.wait_until_trash_is_empty()
    remove_trashed(connection, store, image_id, timeout=10)


def test_without_an_answer_of_the_manager_the_image_stays_in_the_trash_and_the_outcome_is_not_final(
    ceph: DevCluster, connection: Connection, store: Pool
) -> None:
    image_id = _trashed(store)
    ceph.stop_manager()
    try:
        with pytest.raises(BackendTimeout) as caught:
            remove_trashed(connection, store, image_id, timeout=1)
        assert not caught.value.is_final
        assert trash.is_in_trash(store, image_id)
    finally:
        ceph.resume_manager()
    remove_trashed(connection, store, image_id, timeout=10)


@pytest.fixture
def unmanaged(make_connections: Callable[..., Connections], ceph: DevCluster, mon_host: str) -> Iterator[Connection]:
    """A connection of a user that the manager takes no commands from."""
    key = ceph.ceph("auth", "get-or-create-key", "client.unmanaged", "mon", "profile rbd", "osd", "profile rbd").strip()
    with make_connections().use(mon_host, Credentials(user_id="unmanaged", key=key)) as one:
        yield one


def test_a_user_that_the_manager_refuses_removes_the_image_itself(unmanaged: Connection, pool: PoolView) -> None:
    store = unmanaged.pool(pool.name, pool.namespace)
    image_id = _trashed(store)
    remove_trashed(unmanaged, store, image_id, timeout=10)
    assert pool.trash() == []
    assert not [name for name in pool.objects() if image_id in name]
