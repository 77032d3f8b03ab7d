import struct
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from csi_host_rbd.ceph import image as images
from csi_host_rbd.ceph import image_names, omap, trash
from csi_host_rbd.ceph.bindings import rbd
from csi_host_rbd.ceph.cluster import Connection, Pool
from csi_host_rbd.ceph.connections import Connections
from csi_host_rbd.ceph.create import ImageOptions, create_image
from csi_host_rbd.ceph.failures import (
    ArgumentRefused,
    BackendTimeout,
    BackendUnavailable,
    ImageBusy,
    ImageExists,
    ImageNotFound,
    NamespaceNotFound,
    PoolNotFound,
)
from csi_host_rbd.credentials import Credentials
from csi_host_rbd.testing.operations import OperationCounter
from csi_host_rbd.testing.pools import PoolView

pytestmark = pytest.mark.ceph

MIB = 1024**2
GIB = 1024**3
LAYERING = 1
SMALL_BYTES = 64 * MIB


def _entry(name: str, image_id: str) -> bytes:
    return b"".join(struct.pack("<I", len(text)) + text.encode() for text in (name, image_id))


def _write(store: Pool, name: str, offset: int, content: bytes) -> None:
    with rbd.Image(store.ioctx, name) as image:
        image.write(content, offset)


def _assert_name_is_free(store: Pool, name: str) -> None:
    assert not image_names.image_exists(store, name)
    create_image(store, name, SMALL_BYTES, ImageOptions())
    with images.open_image(store, name=name) as image:
        assert image.size_bytes == SMALL_BYTES


def test_an_image_is_made_as_asked(store: Pool, pool: PoolView) -> None:
    options = ImageOptions(features=LAYERING, order=20, stripe_unit_bytes=64 * 1024, stripe_count=4)
    create_image(store, "one", 8 * MIB, options)
    found = pool.image("one")
    assert (found["size"], found["order"]) == (8 * MIB, 20)
    assert (found["stripe_unit"], found["stripe_count"]) == (64 * 1024, 4)
    assert set(found["features"]) == {"layering", "striping"}


def test_a_name_is_used_once(store: Pool) -> None:
    create_image(store, "one", SMALL_BYTES, ImageOptions())
    with pytest.raises(ImageExists, match=store.spec("one")):
        create_image(store, "one", SMALL_BYTES, ImageOptions())


def test_a_missing_namespace_is_named(connection: Connection, pool: PoolView) -> None:
    with pytest.raises(NamespaceNotFound, match="nowhere"):
        create_image(connection.pool(pool.name, "nowhere"), "one", SMALL_BYTES, ImageOptions())


def test_a_missing_data_pool_is_named(store: Pool) -> None:
    with pytest.raises(PoolNotFound, match="data pool 'nowhere'"):
        create_image(store, "one", MIB, ImageOptions(data_pool="nowhere"))


def test_features_that_do_not_go_together_are_refused(store: Pool) -> None:
    with pytest.raises(ArgumentRefused):
        create_image(store, "one", MIB, ImageOptions(features=rbd.RBD_FEATURE_OBJECT_MAP))


def test_an_id_is_read_without_opening(store: Pool, pool: PoolView) -> None:
    create_image(store, "one", SMALL_BYTES, ImageOptions())
    assert image_names.read_image_id(store, "one") == pool.image("one")["id"]
    assert image_names.image_exists(store, "one")
    with pytest.raises(ImageNotFound):
        image_names.read_image_id(store, "two")
    assert not image_names.image_exists(store, "two")


def test_an_image_is_opened_by_name_and_by_id(store: Pool) -> None:
    create_image(store, "one", SMALL_BYTES, ImageOptions())
    image_id = image_names.read_image_id(store, "one")
    for how in ({"name": "one"}, {"image_id": image_id}):
        with images.open_image(store, read_only=True, **how) as image:
            assert (image.image_id, image.size_bytes) == (image_id, 64 * MIB)
    with pytest.raises(ImageNotFound), images.open_image(store, name="two"):
        pass


def test_the_watch_of_the_own_opening_is_left_out_and_everybody_elses_is_named(
    store: Pool,
    pool: PoolView,
    make_connections: Callable[..., Connections],
    mon_host: str,
    credentials: Credentials,
) -> None:
    create_image(store, "one", SMALL_BYTES, ImageOptions())
    with images.open_image(store, name="one") as image:
        assert image.watchers() == []
        with images.open_image(store, name="one", read_only=True) as reader:
            assert [watcher.client_id for watcher in reader.watchers()] == [store.client_id]
        with images.open_image(store, name="one"):
            assert [watcher.client_id for watcher in image.watchers()] == [store.client_id]
        with make_connections().use(mon_host, credentials) as other:
            theirs = other.pool(pool.name, pool.namespace)
            with images.open_image(theirs, name="one"):
                (watcher,) = image.watchers()
    assert watcher.client_id == theirs.client_id != store.client_id
    assert "127.0.0.1" in str(watcher)


def test_metadata_is_written_read_and_removed(store: Pool, pool: PoolView) -> None:
    create_image(store, "one", SMALL_BYTES, ImageOptions())
    with images.open_image(store, name="one") as image:
        assert image.metadata() == {}
        image.set_metadata("a", "eins ü")
        image.set_metadata("b", "2")
        assert image.metadata() == {"a": "eins ü", "b": "2"}
        image.remove_metadata("b")
        image.remove_metadata("b")
    assert pool.metadata("one") == {"a": "eins ü"}


def test_an_image_grows_and_never_shrinks(store: Pool, pool: PoolView) -> None:
    create_image(store, "one", SMALL_BYTES, ImageOptions())
    with images.open_image(store, name="one") as image:
        image.resize(128 * MIB)
        assert image.size_bytes == 128 * MIB
        with pytest.raises(ArgumentRefused):
            image.resize(64 * MIB)
    assert pool.image("one")["size"] == 128 * MIB


def test_a_local_image_is_not_mirrored(store: Pool) -> None:
    create_image(store, "one", SMALL_BYTES, ImageOptions())
    with images.open_image(store, name="one", read_only=True) as image:
        assert not image.mirroring().is_enabled
        assert not image.is_replaying()


@pytest.mark.parametrize("features", [LAYERING, None], ids=["listing objects", "fast-diff"])
def test_what_was_written_is_known_and_the_search_can_end_early(store: Pool, features: int | None) -> None:
    create_image(store, "one", 20 * GIB, ImageOptions(features=features))
    with images.open_image(store, name="one", read_only=True) as image:
        assert image.allocated_extents() == []
    _write(store, "one", 5 * GIB, b"x")
    _write(store, "one", 19 * GIB, b"x")
    with images.open_image(store, name="one", read_only=True) as image:
        assert [offset for offset, _ in image.allocated_extents()] == [5 * GIB, 19 * GIB]
        assert [offset for offset, _ in image.allocated_extents(limit=1)] == [5 * GIB]


def test_an_image_in_the_trash_is_found_by_its_id_and_by_its_name(store: Pool) -> None:
    create_image(store, "one", SMALL_BYTES, ImageOptions())
    image_id = image_names.read_image_id(store, "one")
    assert not trash.is_in_trash(store, image_id)
    trash.trash_move(store, "one")
    assert trash.is_in_trash(store, image_id)
    assert trash.find_in_trash(store, "one") == [image_id]
    assert trash.find_in_trash(store, "two") == []
    with pytest.raises(ImageNotFound):
        trash.trash_move(store, "one")


def test_an_image_that_is_open_elsewhere_does_not_go_to_the_trash(store: Pool) -> None:
    create_image(store, "one", SMALL_BYTES, ImageOptions())
    # The library takes the watch of a client that holds the lock as a use.
    with rbd.Image(store.ioctx, "one") as image:
        image.lock_acquire(rbd.RBD_LOCK_MODE_EXCLUSIVE)
        with pytest.raises(ImageBusy):
            trash.trash_move(store, "one")
    assert image_names.image_exists(store, "one")


def test_removing_from_the_trash_can_be_repeated(store: Pool, pool: PoolView) -> None:
    create_image(store, "one", SMALL_BYTES, ImageOptions())
    image_id = image_names.read_image_id(store, "one")
    trash.trash_move(store, "one")
    trash.remove_from_trash(store, image_id)
    trash.remove_from_trash(store, image_id)
    assert pool.trash() == []
    assert not [name for name in pool.objects() if image_id in name]


def test_a_whole_image_is_no_remnant(store: Pool) -> None:
    create_image(store, "one", SMALL_BYTES, ImageOptions())
    with pytest.raises(BackendUnavailable):
        image_names.remove_remnants(store, "one")
    with images.open_image(store, name="one", read_only=True) as image:
        assert image.size_bytes == SMALL_BYTES


def test_a_creation_that_was_cut_off_is_cleared_away(store: Pool, pool: PoolView) -> None:
    def only_the_id(name: str) -> None:
        store.ioctx.write_full(f"rbd_id.{name}", struct.pack("<I", 5) + b"abcde")

    def an_empty_id(name: str) -> None:
        store.ioctx.write_full(f"rbd_id.{name}", b"")

    def no_header(name: str) -> None:
        create_image(store, name, SMALL_BYTES, ImageOptions())
        omap.remove_object(store, f"rbd_header.{image_names.read_image_id(store, name)}")

    def only_the_directory(name: str) -> None:
        no_header(name)
        omap.remove_object(store, f"rbd_id.{name}")

    for cut_off in (only_the_id, an_empty_id, no_header, only_the_directory):
        name = cut_off.__name__
        cut_off(name)
        with pytest.raises(ImageNotFound), images.open_image(store, name=name):
            pass
        with pytest.raises(ImageExists):
            create_image(store, name, SMALL_BYTES, ImageOptions())
        image_names.remove_remnants(store, name)
        image_names.remove_remnants(store, name)
        assert name not in pool.images()
        _assert_name_is_free(store, name)
    headers = [one.removeprefix("rbd_header.") for one in pool.objects() if one.startswith("rbd_header.")]
    maps = [one.removeprefix("rbd_object_map.") for one in pool.objects() if one.startswith("rbd_object_map.")]
    assert sorted(maps) == sorted(headers)


@pytest.mark.parametrize("keeps_id", [True, False], ids=["before the id went", "after the id went"])
def test_a_move_to_the_trash_that_was_cut_off_is_finished(store: Pool, pool: PoolView, keeps_id: bool) -> None:
    create_image(store, "one", SMALL_BYTES, ImageOptions())
    image_id = image_names.read_image_id(store, "one")
    content = store.ioctx.read("rbd_id.one")
    trash.trash_move(store, "one")
    # librbd writes the trash first, then takes the id away, then the name out of the directory.
    store.ioctx.execute("rbd_directory", "rbd", "dir_add_image", _entry("one", image_id))
    if keeps_id:
        store.ioctx.write_full("rbd_id.one", content)
    image_names.remove_remnants(store, "one")
    assert trash.is_in_trash(store, image_id)
    assert pool.images() == []
    _assert_name_is_free(store, "one")


def test_an_empty_place_has_no_remnants(store: Pool, counter: OperationCounter) -> None:
    with counter.counting() as count:
        image_names.remove_remnants(store, "one")
    assert count.operations <= 3


def test_what_each_step_costs(store: Pool, counter: OperationCounter) -> None:
    costs = {}

    def measure(step: str, function: Callable[[], object]) -> None:
        with counter.counting() as count:
            function()
        costs[step] = count.operations

    layering = ImageOptions(features=LAYERING)
    create_image(store, "first", GIB, layering)
    measure("create", lambda: create_image(store, "one", GIB, layering))
    measure("read id", lambda: image_names.read_image_id(store, "one"))
    measure("exists", lambda: image_names.image_exists(store, "one"))

    def look() -> None:
        with images.open_image(store, name="one", read_only=True) as image:
            assert (image.size_bytes, image.features, bool(image.image_id)) == (GIB, LAYERING, True)
            assert image.created_at.year > 2000

    def look_closer() -> None:
        with images.open_image(store, name="one", read_only=True) as image:
            image.watchers()
            image.mirroring()

    measure("open read-only", look)
    measure("open, watchers, mirroring", look_closer)
    measure("trash", lambda: trash.trash_move(store, "one"))
    assert costs["create"] == 7
    assert costs["read id"] == costs["exists"] == 1
    assert costs["open read-only"] <= 11
    assert costs["open, watchers, mirroring"] <= 13
    assert costs["trash"] <= 20


def test_a_hung_cluster_ends_every_step_in_time_and_with_an_outcome_that_is_not_final(
    store: Pool, hung: Callable[[], AbstractContextManager[None]]
) -> None:
    create_image(store, "one", SMALL_BYTES, ImageOptions())
    create_image(store, "two", SMALL_BYTES, ImageOptions())
    with images.open_image(store, name="one") as writer, hung():
        for step in (
            lambda: create_image(store, "three", SMALL_BYTES, ImageOptions()),
            lambda: image_names.read_image_id(store, "one"),
            lambda: trash.trash_move(store, "two"),
            lambda: trash.find_in_trash(store, "two"),
            lambda: image_names.remove_remnants(store, "two"),
            writer.watchers,
            writer.metadata,
            lambda: writer.set_metadata("a", "1"),
            lambda: writer.resize(GIB),
        ):
            with pytest.raises((BackendTimeout, BackendUnavailable)):
                step()
        with pytest.raises(BackendTimeout), images.open_image(store, name="two"):
            pass
    with images.open_image(store, name="two", read_only=True) as image:
        assert image.size_bytes == SMALL_BYTES


def test_while_a_step_that_was_given_up_still_runs_the_image_is_left_alone(store: Pool) -> None:
    create_image(store, "one", SMALL_BYTES, ImageOptions())
    go_on = threading.Event()
    with pytest.raises(BackendTimeout):
        store.image_threads.call("growing image", lambda: go_on.wait(20), timeout=0.05, target=store.spec("one"))
    try:
        with pytest.raises(BackendUnavailable, match="still runs"):
            trash.trash_move(store, "one")
        with pytest.raises(BackendUnavailable, match="still runs"), images.open_image(store, name="one"):
            pass
    finally:
        go_on.set()
