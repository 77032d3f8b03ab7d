"""Volumes by ceph-csi's rules, whole and cut off, and what others may have done to ours."""

import grpc
import pytest

from csi_host_rbd.testing import ceph_csi
from csi_host_rbd.testing.pools import PoolView
from csi_host_rbd.testing.rig import GIB, RbdRig, rbd_rig

pytestmark = pytest.mark.ceph

_EMPTY: dict[str, dict[str, str]] = {"csi.volumes.default": {}}


def _assert_nothing_is_left(pool: PoolView) -> None:
    assert pool.journal() == _EMPTY
    assert pool.images() == []
    pool.wait_until_trash_is_empty()


def test_a_volume_of_ceph_csi_is_found_expanded_and_deleted(rig: RbdRig) -> None:
    theirs = ceph_csi.make_volume(rig.pool, "pvc-1")
    before = rig.pool.journal()
    assert rig.create("pvc-1").volume_id == theirs.volume_id
    assert rig.pool.journal() == before
    assert rig.expand(theirs.volume_id, 2 * GIB).capacity_bytes == 2 * GIB
    rig.delete(theirs.volume_id)
    _assert_nothing_is_left(rig.pool)


def test_in_a_pool_without_namespaces_it_is_the_same(
    whole_pool: PoolView, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with rbd_rig(whole_pool, tmp_path_factory.mktemp("w")) as rig:
        theirs = ceph_csi.make_volume(whole_pool, "pvc-1")
        ours = rig.create("pvc-2")
        assert rig.create("pvc-1").volume_id == theirs.volume_id
        assert set(rig.pool.journal()[f"csi.volume.{ours.volume_id[-36:]}"]) <= set(
            rig.pool.journal()[f"csi.volume.{theirs.uuid}"]
        )
        for volume_id in (theirs.volume_id, ours.volume_id):
            rig.delete(volume_id)
        _assert_nothing_is_left(whole_pool)


@pytest.mark.parametrize("steps", [2, 3, 4, 5])
def test_a_create_that_ceph_csi_did_not_finish_is_finished(rig: RbdRig, steps: int) -> None:
    theirs = ceph_csi.make_volume(rig.pool, "pvc-1", steps=steps)
    volume = rig.create("pvc-1")
    # Without the uuid's keys (2 steps) the reservation is stale and another uuid takes its place.
    assert (volume.volume_id == theirs.volume_id) == (steps > 2)
    uuid = volume.volume_id[-36:]
    keys = rig.pool.journal()
    assert set(keys) == {"csi.volumes.default", f"csi.volume.{uuid}"}
    assert keys[f"csi.volume.{uuid}"]["csi.imageid"] == rig.pool.image(f"csi-vol-{uuid}")["id"]
    rig.delete(volume.volume_id)
    _assert_nothing_is_left(rig.pool)


@pytest.mark.parametrize("lost", ["the object", "its keys"])
def test_a_directory_key_that_leads_nowhere_is_stale_and_not_an_error_for_ever(rig: RbdRig, lost: str) -> None:
    first = rig.create("pvc-1")
    rig.delete(first.volume_id)
    stale = ceph_csi.make_volume(rig.pool, "pvc-1", steps=3)
    entry = f"csi.volume.{stale.uuid}"
    if lost == "the object":
        rig.pool.remove_object(entry)
    else:
        rig.pool.remove_keys(entry)
    volume = rig.create("pvc-1")
    # A name without an object is what our own crash leaves, and is gone on with; an object without keys is not ours.
    assert (volume.volume_id == stale.volume_id) == (lost == "the object")
    assert (entry in rig.pool.journal()) == (lost == "the object")
    rig.delete(volume.volume_id)
    _assert_nothing_is_left(rig.pool)


def test_a_directory_key_into_a_pool_that_is_gone_is_stale(rig: RbdRig) -> None:
    rig.pool.set_key("csi.volumes.default", "csi.volume.pvc-1", f"{0xFFFFF:016x}/{'0' * 36}")
    rig.delete(rig.create("pvc-1").volume_id)
    _assert_nothing_is_left(rig.pool)


def test_names_that_disagree_are_an_error_and_nothing_is_touched(rig: RbdRig) -> None:
    theirs = ceph_csi.make_volume(rig.pool, "pvc-1")
    rig.pool.set_key("csi.volumes.default", "csi.volume.pvc-2", theirs.uuid)
    before = rig.pool.journal()
    with pytest.raises(grpc.RpcError) as caught:
        rig.create("pvc-2")
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "omap names mismatch" in str(caught.value.details())
    assert rig.pool.journal() == before
    assert rig.pool.images() == [theirs.image]


def test_a_missing_image_name_means_the_default_prefix(rig: RbdRig) -> None:
    theirs = ceph_csi.make_volume(rig.pool, "pvc-1")
    rig.pool.remove_keys(f"csi.volume.{theirs.uuid}")
    rig.pool.set_key(f"csi.volume.{theirs.uuid}", "csi.volname", "pvc-1")
    assert rig.expand(theirs.volume_id, 2 * GIB).capacity_bytes == 2 * GIB
    rig.delete(theirs.volume_id)
    _assert_nothing_is_left(rig.pool)


@pytest.mark.parametrize("knows_id", [True, False])
def test_a_delete_that_stopped_with_the_image_in_the_trash_is_finished(rig: RbdRig, knows_id: bool) -> None:
    theirs = ceph_csi.make_volume(rig.pool, "pvc-1", steps=6 if knows_id else 4)
    ceph_csi.trash_image(theirs)
    rig.delete(theirs.volume_id)
    _assert_nothing_is_left(rig.pool)


def test_a_delete_that_stopped_after_the_uuids_object_was_removed_is_over(rig: RbdRig) -> None:
    # ceph-csi's order leaves the directory key; the next volume of that name finds it stale.
    theirs = ceph_csi.make_volume(rig.pool, "pvc-1", steps=3)
    rig.pool.remove_object(f"csi.volume.{theirs.uuid}")
    rig.delete(theirs.volume_id)
    rig.delete(rig.create("pvc-1").volume_id)
    _assert_nothing_is_left(rig.pool)


def test_the_temporary_image_of_a_clone_goes_with_its_volume(rig: RbdRig) -> None:
    theirs = ceph_csi.make_volume(rig.pool, "pvc-1")
    rig.pool.rbd("create", f"{theirs.image}-temp", "--size", "1G")
    rig.delete(theirs.volume_id)
    _assert_nothing_is_left(rig.pool)


@pytest.mark.parametrize("remnant", ["rbd_id", "rbd_header"])
def test_the_beginnings_of_an_image_are_cleared_away(rig: RbdRig, remnant: str) -> None:
    theirs = ceph_csi.make_volume(rig.pool, "pvc-1", steps=4)
    image_id = rig.pool.image(theirs.image)["id"]
    rig.pool.remove_object(f"rbd_header.{image_id}")
    if remnant == "rbd_header":
        rig.pool.remove_object(f"rbd_id.{theirs.image}")
    with pytest.raises(grpc.RpcError) as caught:
        rig.create("pvc-1")
    assert caught.value.code() is grpc.StatusCode.ABORTED
    assert rig.create("pvc-1").volume_id == theirs.volume_id
    rig.delete(theirs.volume_id)
    _assert_nothing_is_left(rig.pool)


def test_deleting_the_beginnings_of_an_image_leaves_nothing(rig: RbdRig) -> None:
    theirs = ceph_csi.make_volume(rig.pool, "pvc-1", steps=4)
    rig.pool.remove_object(f"rbd_header.{rig.pool.image(theirs.image)['id']}")
    rig.delete(theirs.volume_id)
    _assert_nothing_is_left(rig.pool)


def test_a_name_taken_anew_is_not_removed_with_the_old_handle(rig: RbdRig) -> None:
    old = ceph_csi.make_volume(rig.pool, "pvc-1")
    new = ceph_csi.make_volume(rig.pool, "pvc-1")
    rig.delete(old.volume_id)
    assert rig.pool.keys("csi.volumes.default") == {"csi.volume.pvc-1": new.uuid}
    assert rig.pool.images() == [new.image]
    assert rig.create("pvc-1").volume_id == new.volume_id


def test_a_mirrors_copy_is_not_deleted(rig: RbdRig) -> None:
    theirs = ceph_csi.make_volume(rig.pool, "pvc-1")
    rig.pool.enable_mirroring(theirs.image)
    rig.pool.rbd("mirror", "image", "demote", theirs.image)
    with pytest.raises(grpc.RpcError) as caught:
        rig.delete(theirs.volume_id)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert rig.pool.images() == [theirs.image]
    rig.pool.rbd("mirror", "image", "promote", "--force", theirs.image)
    rig.delete(theirs.volume_id)
    assert rig.pool.journal() == _EMPTY


def test_a_name_whose_deletion_was_cut_off_gets_a_new_handle_and_the_old_image_goes(rig: RbdRig) -> None:
    old = rig.create("pvc-1")
    rig.pool.rbd("trash", "mv", f"csi-vol-{old.volume_id[-36:]}")
    new = rig.create("pvc-1")
    assert new.volume_id != old.volume_id
    rig.pool.wait_until_trash_is_empty()
    # The delete that was on its way does not touch the new volume.
    rig.delete(old.volume_id)
    assert rig.pool.images() == [f"csi-vol-{new.volume_id[-36:]}"]
    rig.delete(new.volume_id)
    _assert_nothing_is_left(rig.pool)
