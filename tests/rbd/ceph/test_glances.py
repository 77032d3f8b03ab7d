"""What is read of images without opening them, against what librbd says of them."""

import uuid
from datetime import UTC, datetime

import pytest

from csi_host_rbd.ceph.cluster import Connection, Pool
from csi_host_rbd.ceph.failures import CephRefused, ImageNotFound
from csi_host_rbd.ceph.glances import (
    mirrored_among,
    read_created_at,
    read_data_pool_id,
    read_size,
    trashed_among,
)
from csi_host_rbd.ceph.usage import read_usage
from csi_host_rbd.testing.operations import OperationCounter
from csi_host_rbd.testing.pools import PoolView

pytestmark = pytest.mark.ceph


def test_a_header_tells_what_rbd_info_does_at_one_operation_each(
    pool: PoolView, store: Pool, counter: OperationCounter
) -> None:
    pool.rbd("create", "image", "--size", "5M", "--image-shared")
    information = pool.image("image")
    image_id = information["id"]
    read_size(store, image_id)
    with counter.counting() as count:
        size_bytes, created_at = read_size(store, image_id), read_created_at(store, image_id)
        data_pool_id = read_data_pool_id(store, image_id)
    assert size_bytes == 5 * 1024**2
    assert created_at.astimezone().strftime("%c") == information["create_timestamp"]
    assert abs((datetime.now(UTC) - created_at).total_seconds()) < 3600
    assert data_pool_id is None
    assert count.operations == 3


def test_the_pool_with_the_data_is_told_where_it_is_another(pool: PoolView, store: Pool, whole_pool: PoolView) -> None:
    pool.rbd("create", "image", "--size", "5M", "--data-pool", whole_pool.name)
    assert read_data_pool_id(store, pool.image("image")["id"]) == whole_pool.id()


def test_a_missing_image_is_not_found_and_a_damaged_header_is_refused(pool: PoolView, store: Pool) -> None:
    for read in (read_size, read_created_at, read_data_pool_id):
        with pytest.raises(ImageNotFound, match="none-such"):
            read(store, "none-such")
    pool.rbd("create", "image", "--size", "5M")
    image_id = pool.image("image")["id"]
    pool.set_key(f"rbd_header.{image_id}", "size", "junk")
    with pytest.raises(CephRefused, match="get_size"):
        read_size(store, image_id)


def test_the_trash_and_mirroring_are_asked_for_many_images_at_once(
    whole_pool: PoolView, connection: Connection, counter: OperationCounter
) -> None:
    store = connection.pool(whole_pool.name)
    assert trashed_among(store, ["1", "2"]) == mirrored_among(store, ["1", "2"]) == frozenset()
    ids = []
    for name in ("plain", "trashed", "mirrored"):
        whole_pool.rbd("create", name, "--size", "5M", "--image-feature", "layering")
        ids.append(whole_pool.image(name)["id"])
    whole_pool.rbd("trash", "mv", "trashed")
    whole_pool.enable_mirroring("mirrored")
    with counter.counting() as count:
        trashed, mirrored = trashed_among(store, [*ids, "none"]), mirrored_among(store, [*ids, "none"])
        nothing = trashed_among(store, [])
    assert [set(trashed), set(mirrored), set(nothing)] == [{ids[1]}, {ids[2]}, set()]
    assert count.operations == 2
    assert read_size(store, ids[1]) == 5 * 1024**2


def test_the_monitors_tell_every_pools_room_and_flags(whole_pool: PoolView, connection: Connection) -> None:
    usage = read_usage(connection)[whole_pool.id()]
    assert usage.name == whole_pool.name
    assert usage.available_bytes > 0
    assert "full" not in usage.flags


def test_the_pools_that_may_hold_images_are_told_apart_from_others(pool: PoolView, connection: Connection) -> None:
    name = f"test-{uuid.uuid4().hex[:8]}"
    pool.cluster.ceph("osd", "pool", "create", name, "8")
    other = PoolView(cluster=pool.cluster, name=name)
    # A pool that nobody has claimed may be one of ours.
    assert {pool.id(), other.id()} <= set(connection.pool_ids_for("rbd"))
    pool.cluster.ceph("osd", "pool", "application", "enable", name, "cephfs")
    assert other.id() not in connection.pool_ids_for("rbd")
    pool.cluster.delete_pool(name)
    assert connection.pool_ids_for("rbd") == sorted(connection.pool_ids_for("rbd"))
