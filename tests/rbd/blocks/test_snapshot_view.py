"""An image at its snapshots, opened by ids."""

from collections.abc import Iterator

import pytest

from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.connections import Connections, Timeouts
from csi_host_rbd.ceph.extents import Extent, merged
from csi_host_rbd.ceph.failures import ImageNotFound
from csi_host_rbd.ceph.image_names import read_image_id
from csi_host_rbd.ceph.snapshot_headers import flags_at, overlap_at, snapshot_ids
from csi_host_rbd.ceph.snapshot_view import open_at
from csi_host_rbd.credentials import Credentials
from csi_host_rbd.testing.disks import MakeDisk
from csi_host_rbd.testing.rig import RbdRig

pytestmark = pytest.mark.ceph

KIB = 1024
MIB = 1024**2
SIZE = 16 * MIB
OBJECT = 64 * KIB


@pytest.fixture
def store(rig: RbdRig) -> Iterator[Pool]:
    connections = Connections(timeouts=Timeouts())
    monitors = ",".join(rig.pool.cluster.monitors)
    with connections.use(monitors, Credentials.from_secrets(rig.secrets)) as connection:
        yield connection.pool(rig.pool.name, rig.pool.namespace)
    connections.close()


def test_a_long_answer_is_asked_for_in_pieces_and_is_the_same(make_disk: MakeDisk, store: Pool) -> None:
    disk = make_disk(size_bytes=SIZE, features=("layering",), objectSize=str(OBJECT))
    disk.write([(at, 512) for at in range(0, SIZE, 2 * OBJECT)])
    disk.snapshot("one")
    image_id = read_image_id(store, disk.image)
    (snapshot_id,) = snapshot_ids(store, image_id)
    with open_at(store, image_id, snapshot_id) as view:
        whole = list(view.allocated(0, SIZE))
    assert [extent.offset for extent in whole] == list(range(0, SIZE, 2 * OBJECT))
    for at_once in (1, 7, 100):
        with open_at(store, image_id, snapshot_id, extents_at_once=at_once) as view:
            assert list(merged(view.allocated(0, SIZE))) == whole


def test_what_was_written_after_a_snapshot_is_not_in_it(make_disk: MakeDisk, store: Pool) -> None:
    disk = make_disk(size_bytes=SIZE, objectSize=str(OBJECT))
    disk.snapshot("one")
    disk.write([(0, OBJECT)])
    disk.resize(2 * SIZE)
    disk.snapshot("two")
    image_id = read_image_id(store, disk.image)
    first, second = snapshot_ids(store, image_id)
    with open_at(store, image_id, first) as view:
        assert (view.size_bytes, list(view.allocated(0, SIZE))) == (SIZE, [])
    with open_at(store, image_id, second) as view:
        assert (view.size_bytes, list(view.allocated(0, 2 * SIZE))) == (2 * SIZE, [Extent(0, OBJECT)])
        assert view.layout.object_bytes == OBJECT
    assert (flags_at(store, image_id, first), overlap_at(store, image_id, first)) == (0, 0)


def test_what_there_is_not_is_not_found(make_disk: MakeDisk, store: Pool) -> None:
    image_id = read_image_id(store, make_disk(size_bytes=SIZE).image)
    assert snapshot_ids(store, image_id) == []
    for unknown, snapshot_id in ((image_id, 12345), ("0123456789ab", None)):
        with pytest.raises(ImageNotFound), open_at(store, unknown, snapshot_id):
            pass
    with pytest.raises(ImageNotFound):
        flags_at(store, image_id, 12345)
    with pytest.raises(ImageNotFound):
        snapshot_ids(store, "0123456789ab")
