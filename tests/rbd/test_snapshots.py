"""Snapshots and what is made from them, through the socket on a real cluster."""

import grpc
import pytest

from csi_host_rbd.testing.rig import GIB, RbdRig

pytestmark = pytest.mark.ceph

_EMPTY: dict[str, dict[str, str]] = {"csi.volumes.default": {}, "csi.snaps.default": {}}


def _image(handle: str, prefix: str = "csi-vol-") -> str:
    return prefix + handle[-36:]


def _assert_nothing_is_left(rig: RbdRig) -> None:
    assert rig.pool.journal() == _EMPTY
    assert rig.pool.images() == []
    rig.pool.wait_until_trash_is_empty()


def test_a_snapshot_has_the_layout_that_ceph_csi_reads(rig: RbdRig) -> None:
    volume = rig.create("pvc-1")
    snapshot = rig.snapshot(volume.volume_id, "snap-1")
    uuid = snapshot.snapshot_id[-36:]
    image = f"csi-snap-{uuid}"
    information = rig.pool.image(image)
    assert rig.pool.journal()["csi.snaps.default"] == {"csi.snap.snap-1": uuid}
    assert rig.pool.journal()[f"csi.snap.{uuid}"] == {
        "csi.snapname": "snap-1",
        "csi.imagename": image,
        "csi.source": _image(volume.volume_id),
        "csi.imageid": information["id"],
    }
    assert set(information["features"]) >= {"layering", "deep-flatten"}
    assert information["parent"]["image"] == _image(volume.volume_id)
    assert rig.pool.snapshots(image) == {image: "user"}
    assert rig.pool.snapshots(_image(volume.volume_id)) == {image: "trash"}
    assert (snapshot.source_volume_id, snapshot.size_bytes, snapshot.ready_to_use) == (volume.volume_id, GIB, True)
    assert snapshot.creation_time.seconds > 0
    assert snapshot == rig.snapshot(volume.volume_id, "snap-1")
    rig.delete_snapshot(snapshot.snapshot_id)
    rig.delete_snapshot(snapshot.snapshot_id)
    rig.delete(volume.volume_id)
    _assert_nothing_is_left(rig)


def test_volumes_are_restored_and_cloned_and_all_goes_away(rig: RbdRig) -> None:
    volume = rig.create("pvc-1")
    snapshot = rig.snapshot(volume.volume_id, "snap-1")
    restored = rig.restore(snapshot.snapshot_id, "pvc-2")
    clone = rig.clone(volume.volume_id, "pvc-3")
    assert restored.content_source.snapshot.snapshot_id == snapshot.snapshot_id
    assert clone.content_source.volume.volume_id == volume.volume_id
    assert rig.pool.image(_image(restored.volume_id))["parent"]["image"] == _image(snapshot.snapshot_id, "csi-snap-")
    assert rig.pool.image(_image(clone.volume_id))["parent"]["image"] == _image(volume.volume_id)
    assert rig.restore(snapshot.snapshot_id, "pvc-2") == restored
    assert rig.clone(volume.volume_id, "pvc-3") == clone
    for handle in (volume.volume_id, restored.volume_id, clone.volume_id):
        rig.delete(handle)
    rig.delete_snapshot(snapshot.snapshot_id)
    assert rig.pool.journal() == _EMPTY
    assert rig.pool.images() == []


def test_a_volume_may_be_bigger_than_its_source_and_never_smaller(rig: RbdRig) -> None:
    volume = rig.create("pvc-1", capacity_range={"required_bytes": 2 * GIB})
    snapshot = rig.snapshot(volume.volume_id, "snap-1")
    bigger = rig.restore(snapshot.snapshot_id, "pvc-2", capacity_range={"required_bytes": 3 * GIB})
    same = rig.clone(volume.volume_id, "pvc-3", capacity_range=None)
    assert (bigger.capacity_bytes, same.capacity_bytes) == (3 * GIB, 2 * GIB)
    assert rig.pool.image(_image(bigger.volume_id))["size"] == 3 * GIB
    before = rig.pool.journal()
    with pytest.raises(grpc.RpcError, match="cannot be smaller") as refused:
        rig.restore(snapshot.snapshot_id, "pvc-4")
    assert refused.value.code() is grpc.StatusCode.OUT_OF_RANGE
    assert rig.pool.journal() == before


def test_a_source_that_is_not_there_is_not_found(rig: RbdRig) -> None:
    volume = rig.create("pvc-1")
    missing = volume.volume_id[:-36] + "0" * 36
    for call in (
        lambda: rig.restore(missing, "pvc-2"),
        lambda: rig.restore("junk", "pvc-2"),
        lambda: rig.clone(missing, "pvc-2"),
        lambda: rig.clone("junk", "pvc-2"),
        lambda: rig.snapshot(missing, "snap-1"),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            call()
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    assert rig.pool.images() == [_image(volume.volume_id)]


def test_a_name_of_a_snapshot_of_another_volume_is_taken(rig: RbdRig) -> None:
    one, two = rig.create("pvc-1"), rig.create("pvc-2")
    rig.snapshot(one.volume_id, "snap-1")
    with pytest.raises(grpc.RpcError, match="another volume") as refused:
        rig.snapshot(two.volume_id, "snap-1")
    assert refused.value.code() is grpc.StatusCode.ALREADY_EXISTS
