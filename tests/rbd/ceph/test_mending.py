import pytest

from csi_host.errors import InvalidArgument
from csi_host_rbd.ceph import headers, image_names, mending, registries
from csi_host_rbd.ceph.bindings import rados, rbd
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.create import ImageOptions, SnapshotSpec, clone_image, create_image
from csi_host_rbd.ceph.failures import KeyMismatch, ObjectExists, ObjectNotFound
from csi_host_rbd.ceph.image import open_image
from csi_host_rbd.ceph.parents import children_of, parent_of
from csi_host_rbd.testing.pools import PoolView

pytestmark = pytest.mark.ceph

OPTIONS = ImageOptions(features=1)


def _make(store: Pool, name: str) -> str:
    create_image(store, name, 4 * 1024**2, OPTIONS)
    return image_names.read_image_id(store, name)


def _unlist(store: Pool, name: str, image_id: str) -> None:
    with rados.WriteOpCtx() as operation:
        store.ioctx.remove_omap_keys(operation, (f"name_{name}", f"id_{image_id}"))
        store.ioctx.operate_write_op(operation, "rbd_directory")


def test_an_object_is_removed_only_while_its_keys_are_as_expected(store: Pool, pool: PoolView) -> None:
    pool.set_keys("one", {"a": "1"})
    with pytest.raises(KeyMismatch):
        mending.remove_object_if(store, "one", {"a": "2"})
    with pytest.raises(KeyMismatch):
        mending.remove_object_if(store, "one", {"a": "1", "b": "1"})
    with pytest.raises(InvalidArgument):
        mending.remove_object_if(store, "one", {"a": "é"})
    assert pool.keys("one") == {"a": "1"}
    mending.remove_object_if(store, "one", {"a": "1", "b": ""})
    assert "one" not in pool.objects()
    with pytest.raises(ObjectNotFound):
        mending.remove_object_if(store, "one", {"a": "1"})


def test_keys_are_changed_only_while_they_are_as_expected(store: Pool, pool: PoolView) -> None:
    pool.set_keys("one", {"a": "1"})
    with pytest.raises(KeyMismatch):
        mending.change_keys_if(store, "one", {"a": ""}, {"a": "2"})
    mending.change_keys_if(store, "one", {"a": "1"}, {"a": "2"})
    assert pool.keys("one") == {"a": "2"}
    with pytest.raises(ObjectNotFound):
        mending.change_keys_if(store, "nobodys", {"a": "1"}, {"a": "2"})


def test_an_image_that_lost_its_id_object_is_opened_by_name_again(store: Pool, pool: PoolView) -> None:
    image_id = _make(store, "one")
    pool.remove_object("rbd_id.one")
    mending.write_id_object(store, "one", image_id)
    assert pool.image("one")["id"] == image_id
    with pytest.raises(ObjectExists):
        mending.write_id_object(store, "one", image_id)


def test_an_image_that_the_directory_lacks_is_listed_again(store: Pool, pool: PoolView) -> None:
    image_id = _make(store, "one")
    _unlist(store, "one", image_id)
    assert pool.images() == []
    mending.list_image(store, "one", image_id)
    assert pool.images() == ["one"]


def test_a_clone_that_its_parent_forgot_is_known_again_and_outlives_its_snapshot(store: Pool) -> None:
    parent_id = _make(store, "one")
    with open_image(store, name="one") as image:
        image.create_snapshot("first")
    clone_image(SnapshotSpec(pool=store, image="one", snapshot="first"), store, "two", OPTIONS)
    clone_id = image_names.read_image_id(store, "two")
    parent = parent_of(store, clone_id)
    assert parent is not None
    store.ioctx.execute(
        f"rbd_header.{parent_id}",
        "rbd",
        "child_detach",
        _child_question(parent.snapshot_id, store, clone_id),
    )
    assert children_of(store, parent) == []
    for _ in range(2):
        mending.attach_child(store, parent, store, clone_id)
        assert children_of(store, parent) == [(store.pool_id, store.namespace, clone_id)]
    with open_image(store, name="one") as image:
        image.remove_snapshot("first")
    # Had the parent not known of it, the snapshot would be gone and this would fail.
    with open_image(store, name="two") as image:
        image.flatten()
    assert parent_of(store, clone_id) is None
    assert headers.read_header(store, parent_id).snapshot_ids == ()


def _child_question(snapshot_id: int, store: Pool, image_id: str) -> bytes:
    child = store.pool_id.to_bytes(8, "little")
    for text in (image_id, store.namespace):
        child += len(text).to_bytes(4, "little") + text.encode()
    return snapshot_id.to_bytes(8, "little") + b"\x02\x01" + len(child).to_bytes(4, "little") + child


def test_a_nameless_image_is_kept_in_the_trash_and_can_be_restored(store: Pool, pool: PoolView) -> None:
    image_id = _make(store, "one")
    _unlist(store, "one", image_id)
    pool.remove_object("rbd_id.one")
    mending.put_into_trash(store, image_id, "found", kept_seconds=600)
    assert pool.trash() == ["found"]
    found = registries.trashed_image(store, image_id)
    assert found is not None
    assert 590 < found.kept_until - found.deleted_at < 610
    with pytest.raises(rbd.PermissionError):
        rbd.RBD().trash_remove(store.ioctx, image_id)
    pool.rbd("trash", "restore", image_id)
    assert pool.image("found")["id"] == image_id
