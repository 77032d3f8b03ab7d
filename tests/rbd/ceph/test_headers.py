import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from csi_host_rbd.ceph import headers, image_names, omap, registries
from csi_host_rbd.ceph.bindings import rados, rbd
from csi_host_rbd.ceph.class_calls import ask
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.connections import Connections, Timeouts
from csi_host_rbd.ceph.create import ImageOptions, SnapshotSpec, clone_image, create_image
from csi_host_rbd.ceph.failures import BackendTimeout, ImageNotFound, ObjectNotFound
from csi_host_rbd.ceph.image import open_image
from csi_host_rbd.ceph.parents import children_of, parent_of
from csi_host_rbd.credentials import Credentials
from csi_host_rbd.devcluster import DevCluster
from csi_host_rbd.testing.operations import OperationCounter
from csi_host_rbd.testing.pools import PoolView

pytestmark = pytest.mark.ceph

MIB = 1024**2
OPTIONS = ImageOptions(features=1)


def _make(store: Pool, name: str) -> str:
    create_image(store, name, 4 * MIB, OPTIONS)
    return image_names.read_image_id(store, name)


def _snapshot(store: Pool, name: str, snapshot: str) -> None:
    with open_image(store, name=name) as image:
        image.create_snapshot(snapshot)


def test_a_header_is_read_in_one_operation(store: Pool, counter: OperationCounter) -> None:
    image_id = _make(store, "one")
    with counter.counting() as count:
        header = headers.read_header(store, image_id)
    assert count.operations == 1
    assert (header.image_id, header.size_bytes, header.has_parent, header.snapshot_ids) == (
        image_id,
        4 * MIB,
        False,
        (),
    )
    assert abs(header.created_at - time.time()) < 600


def test_an_image_without_a_header_is_not_found(store: Pool) -> None:
    with pytest.raises(ImageNotFound):
        headers.read_header(store, "0123456789ab")


def test_a_users_snapshots_are_told_from_those_that_librbd_keeps(store: Pool, counter: OperationCounter) -> None:
    image_id = _make(store, "one")
    for name in ("first", "second"):
        _snapshot(store, "one", name)
    clone_image(SnapshotSpec(pool=store, image="one", snapshot="first"), store, "two", OPTIONS)
    with open_image(store, name="one") as image:
        image.remove_snapshot("first")
    header = headers.read_header(store, image_id)
    assert len(header.snapshot_ids) == 2
    with counter.counting() as count:
        (second,) = headers.user_snapshots(store, header)
    assert count.operations == 2
    assert (second.name, second.child_count) == ("second", 0)
    assert abs(second.created_at - time.time()) < 600


def test_a_parent_and_its_clones_know_of_each_other(store: Pool) -> None:
    image_id = _make(store, "one")
    _snapshot(store, "one", "first")
    clone_image(SnapshotSpec(pool=store, image="one", snapshot="first"), store, "two", OPTIONS)
    clone_id = image_names.read_image_id(store, "two")
    assert headers.read_header(store, clone_id).has_parent
    parent = parent_of(store, clone_id)
    assert parent is not None
    assert (parent.image_id, parent.namespace) == (image_id, store.namespace)
    assert children_of(store, parent) == [(store.pool_id, store.namespace, clone_id)]
    assert not registries.has_format_1_child(store, parent, clone_id)


def test_a_clone_of_the_first_kind_is_known_too(store: Pool, pool: PoolView) -> None:
    _make(store, "one")
    _snapshot(store, "one", "first")
    pool.rbd("snap", "protect", "one@first")
    place = f"{pool.name}/{pool.namespace}"
    pool.cluster.rbd("clone", "--rbd-default-clone-format", "1", f"{place}/one@first", f"{place}/two")
    clone_id = image_names.read_image_id(store, "two")
    parent = parent_of(store, clone_id)
    assert parent is not None
    assert registries.has_format_1_child(store, parent, clone_id)


def test_the_age_of_an_object_is_known_whoever_wrote_it(store: Pool, pool: PoolView) -> None:
    """The bindings send 1970 unless they are given a time."""
    omap.create_object(store, "ours", {"a": "b"})
    pool.create_object("theirs")
    with rados.WriteOpCtx() as operation:
        operation.new(0)
        store.ioctx.operate_write_op(operation, "timeless")
    for name in ("ours", "theirs", "timeless"):
        modified = headers.modified_at(store, name)
        assert modified is not None
        assert abs(modified - time.time()) < 600, name
    assert store.ioctx.stat("ours")[1].tm_year > 2000
    assert headers.modified_at(store, "nobodys") is None


def test_images_are_listed_in_pages_and_looked_up_together(store: Pool, counter: OperationCounter) -> None:
    entries = {f"name_image-{number:04}": _text(f"id{number:04}") for number in range(1100)}
    with rados.WriteOpCtx() as operation:
        store.ioctx.set_omap(operation, tuple(entries), tuple(entries.values()))
        store.ioctx.operate_write_op(operation, "rbd_directory")
    with counter.counting() as count:
        pages = list(registries.images(store))
    assert [len(page) for page in pages] == [512, 512, 76]
    assert count.operations == 3
    assert pages[2][-1] == registries.ListedImage(name="image-1099", image_id="id1099")
    names = [f"image-{number:04}" for number in range(0, 1200, 2)]
    with counter.counting() as count:
        found = registries.ids_of(store, names)
    assert count.operations == 2
    assert len(found) == 550
    assert found["image-0002"] == "id0002"


def _text(text: str) -> bytes:
    return len(text).to_bytes(4, "little") + text.encode()


def test_a_pool_without_images_trash_or_groups_has_none(store: Pool) -> None:
    assert list(registries.images(store)) == []
    assert list(registries.trashed_images(store)) == []
    assert list(registries.groups(store)) == []
    assert registries.ids_of(store, ["one"]) == {}
    assert registries.in_trash(store, ["one"]) == set()
    assert registries.trashed_image(store, "one") is None
    assert not registries.is_mirrored(store, "one")
    with pytest.raises(ObjectNotFound):
        ask(store, "nobodys", "dir_list", bytes(12), lambda _: None)


def test_what_is_in_the_trash_is_read_with_its_times(store: Pool) -> None:
    image_id = _make(store, "one")
    rbd.RBD().trash_move(store.ioctx, "one", 600)
    ((one,),) = registries.trashed_images(store)
    assert (one.image_id, one.name) == (image_id, "one")
    assert 590 < one.kept_until - one.deleted_at < 610
    assert registries.trashed_image(store, image_id) == one
    assert registries.in_trash(store, [image_id, "nobodys"]) == {image_id}


def test_groups_are_found_by_name_and_known_to_be_empty(store: Pool, pool: PoolView) -> None:
    _make(store, "one")
    for name in ("empty", "full"):
        rbd.RBD().group_create(store.ioctx, name)
    pool.cluster.rbd("group", "image", "add", f"{pool.name}/{pool.namespace}/full", f"{pool.name}/{pool.namespace}/one")
    ((empty, full),) = registries.groups(store)
    assert registries.find_group(store, "full") == full
    assert registries.find_group(store, "nobodys") is None
    assert registries.is_group_empty(store, empty)
    assert not registries.is_group_empty(store, full)


def test_a_listing_that_was_cut_short_is_not_taken_for_the_end(
    ceph: DevCluster,
    make_connections: Callable[..., Connections],
    mon_host: str,
    credentials: Credentials,
    pool: PoolView,
) -> None:
    """The binding says that there is no more, whatever happened."""
    with make_connections(timeouts=Timeouts(operation=4.0)).use(mon_host, credentials) as connection:
        store = connection.pool(pool.name, pool.namespace)
        names = {f"object-{number}" for number in range(20)}
        for name in names:
            omap.set_keys(store, name, {"a": "b"})
        ceph.stop_osd()
        resume = threading.Timer(6.0, ceph.resume_osd)
        resume.start()
        try:
            assert names <= set(registries.object_names(store))
        finally:
            resume.join()
            ceph.resume_osd()


def test_a_listing_of_a_hung_cluster_ends(store: Pool, hung: Callable[[], AbstractContextManager[None]]) -> None:
    with hung(), pytest.raises(BackendTimeout):
        list(registries.object_names(store))


def test_an_object_whose_name_is_no_text_is_passed_over(store: Pool, pool: PoolView) -> None:
    omap.set_keys(store, "one", {"a": "b"})
    argv = [b"rados", b"--conf", str(pool.cluster.ceph_conf).encode(), b"-p", pool.name.encode()]
    subprocess.run([*argv, b"-N", pool.namespace.encode(), b"create", b"\xff\xfe"], check=True, timeout=60)
    # From Ceph 18 on a namespace has its trash from the start.
    assert set(registries.object_names(store)) - {"rbd_trash"} == {"one", "rbd_directory"}
