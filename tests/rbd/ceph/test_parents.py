"""What the headers say of clones, against clones that Ceph's own tool made."""

import struct

import pytest

from csi_host_rbd.ceph import image_names, parents
from csi_host_rbd.ceph.cluster import Connection, Pool
from csi_host_rbd.ceph.encoding import packed, packed_u64
from csi_host_rbd.ceph.failures import ImageNotFound
from csi_host_rbd.testing import ceph_csi
from csi_host_rbd.testing.pools import PoolView

pytestmark = pytest.mark.ceph


def _depth(connection: Connection, store: Pool, name: str) -> int:
    return parents.depth_of(store, image_names.read_image_id(store, name), connection.pool_with_id)


def test_the_depth_of_a_chain_is_counted_through_the_trash(connection: Connection, store: Pool, pool: PoolView) -> None:
    volume = ceph_csi.make_volume(pool, "pvc-1")
    snapshot = ceph_csi.make_snapshot(volume, "snap-1")
    restored = ceph_csi.make_restore(snapshot, "pvc-2")
    clone = ceph_csi.make_clone(restored, "pvc-3")
    chain = [volume.image, snapshot.image, restored.image, clone.image + "-temp", clone.image]
    assert [_depth(connection, store, name) for name in chain] == [0, 1, 2, 3, 4]
    pool.rbd("trash", "mv", restored.image)
    assert _depth(connection, store, clone.image) == 4
    with pytest.raises(ImageNotFound):
        parents.parent_of(store, "0123456789")


def test_a_clone_is_attached_when_its_parent_knows_of_it(connection: Connection, store: Pool, pool: PoolView) -> None:
    volume = ceph_csi.make_volume(pool, "pvc-1")
    snapshot = ceph_csi.make_snapshot(volume, "snap-1")
    image_id = image_names.read_image_id(store, snapshot.image)
    assert parents.is_attached(store, image_id, connection.pool_with_id)
    assert not parents.is_attached(store, image_names.read_image_id(store, volume.image), connection.pool_with_id)
    pool.remove_keys(f"rbd_header.{image_names.read_image_id(store, volume.image)}")
    assert not parents.is_attached(store, image_id, connection.pool_with_id)


def test_a_snapshot_with_thousands_of_clones_tells_all_of_them(store: Pool, pool: PoolView) -> None:
    """One answer of the OSD is then longer than what an ordinary question makes room for."""
    volume = ceph_csi.make_volume(pool, "pvc-1")
    pool.rbd("snap", "create", f"{volume.image}@first")
    place = f"{pool.name}/{pool.namespace}"
    pool.cluster.rbd("clone", "--rbd-default-clone-format", "2", f"{place}/{volume.image}@first", f"{place}/clone")
    image_id = image_names.read_image_id(store, "clone")
    parent = parents.parent_of(store, image_id)
    assert parent is not None
    others = [(store.pool_id, store.namespace, f"{number:012x}") for number in range(3000)]
    for _, _, child_id in others:
        child = packed_u64(store.pool_id) + packed(child_id) + packed(store.namespace)
        question = packed_u64(parent.snapshot_id) + struct.pack("<BBI", 2, 1, len(child)) + child
        store.ioctx.execute(f"rbd_header.{parent.image_id}", "rbd", "child_attach", question)
    assert sorted(parents.children_of(store, parent)) == sorted([*others, (store.pool_id, store.namespace, image_id)])
