"""Snapshots and what is made from them, through the socket on a real cluster."""

import uuid as uuids
from dataclasses import replace

import grpc
import pytest

from csi_host_rbd.testing.pools import PoolView
from csi_host_rbd.testing.rig import GIB, RbdRig, rbd_rig

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


def test_a_clone_goes_to_the_pool_and_has_the_features_of_its_class(rig: RbdRig, whole_pool: PoolView) -> None:
    # The class's pool is seen through the cluster's RADOS namespace.
    rig.pool.cluster.rbd("namespace", "create", "--pool", whole_pool.name, "--namespace", rig.pool.namespace)
    other = replace(whole_pool, namespace=rig.pool.namespace)
    volume = rig.create("pvc-1")
    parameters = rig.parameters(pool=other.name, imageFeatures="layering,exclusive-lock", objectSize="8388608")
    snapshot = rig.snapshot(volume.volume_id, "snap-1")
    for made in (
        rig.clone(volume.volume_id, "pvc-2", parameters=parameters),
        rig.restore(snapshot.snapshot_id, "pvc-3", parameters=parameters),
    ):
        assert made.volume_context["pool"] == other.name
        image = other.image(_image(made.volume_id))
        assert (image["order"], image["parent"]["pool"]) == (23, rig.pool.name)
        assert "exclusive-lock" in image["features"]
        rig.delete(made.volume_id)
    assert other.journal() == {"csi.volumes.default": {}}


def test_a_clone_with_smaller_objects_than_its_source_is_refused_and_leaves_nothing(rig: RbdRig) -> None:
    volume = rig.create("pvc-1")
    before = rig.pool.journal()
    with pytest.raises(grpc.RpcError, match="objects as big as its source's") as refused:
        rig.clone(volume.volume_id, "pvc-2", parameters=rig.parameters(objectSize="1048576"))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert rig.pool.journal() == before
    assert rig.pool.images() == [_image(volume.volume_id)]
    assert rig.pool.snapshots(_image(volume.volume_id)) == {}


def test_a_clone_needs_layering(rig: RbdRig) -> None:
    plain = rig.create("pvc-1", parameters=rig.parameters(imageFeatures="exclusive-lock"))
    for call in (lambda: rig.snapshot(plain.volume_id, "snap-1"), lambda: rig.clone(plain.volume_id, "pvc-2")):
        with pytest.raises(grpc.RpcError, match="layering") as refused:
            call()
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    rig.delete(plain.volume_id)
    assert rig.pool.journal() == {"csi.volumes.default": {}}


def test_names_of_the_source_are_not_passed_on(pool: PoolView, tmp_path_factory: pytest.TempPathFactory) -> None:
    names = {"csi.storage.k8s.io/pvc/name": "data", "csi.storage.k8s.io/pvc/namespace": "shop"}
    classes = {"csi.storage.k8s.io/volumesnapshot/name": "daily", "csi.storage.k8s.io/volumesnapshot/namespace": "shop"}
    with rbd_rig(pool, tmp_path_factory.mktemp("n"), set_metadata=True, cluster_name="east") as naming:
        cluster = {"csi.ceph.com/cluster/name": "east"}
        volume = naming.create("pvc-1", parameters=naming.parameters(**names))
        snapshot = naming.snapshot(volume.volume_id, "snap-1", parameters=classes)
        clone = naming.clone(volume.volume_id, "pvc-2")
        restored = naming.restore(snapshot.snapshot_id, "pvc-3", parameters=naming.parameters(**names))
        assert pool.metadata(_image(volume.volume_id)) == names | cluster
        assert pool.metadata(_image(snapshot.snapshot_id, "csi-snap-")) == classes | cluster
        assert pool.metadata(_image(clone.volume_id)) == cluster
        assert pool.metadata(_image(restored.volume_id)) == names | cluster


def test_a_snapshot_class_is_understood_or_refused_by_name(rig: RbdRig) -> None:
    volume = rig.create("pvc-1")
    for parameters, named in (
        ({"snapshotNamePrefix": ""}, "snapshotNamePrefix"),
        ({"snapshotNamePrefix": "a/b"}, "snapshotNamePrefix"),
        ({"pool": ""}, "pool"),
        ({"clusterID": "nowhere"}, "clusterID"),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            rig.snapshot(volume.volume_id, "snap-1", parameters=parameters)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert f"parameters[{named}]" in str(refused.value.details())
    snapshot = rig.snapshot(volume.volume_id, "snap-1", parameters={"snapshotNamePrefix": "daily-"})
    image = _image(snapshot.snapshot_id, "daily-")
    assert rig.pool.snapshots(image) == {image: "user"}
    rig.restore(snapshot.snapshot_id, "pvc-2")
    rig.delete_snapshot(snapshot.snapshot_id)
    assert image not in rig.pool.images()


def test_a_volume_with_a_snapshot_taken_by_hand_is_not_deleted(rig: RbdRig) -> None:
    volume = rig.create("pvc-1")
    rig.pool.rbd("snap", "create", f"{_image(volume.volume_id)}@before-upgrade")
    with pytest.raises(grpc.RpcError, match="before-upgrade") as refused:
        rig.delete(volume.volume_id)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert rig.pool.trash() == []
    rig.pool.rbd("snap", "rm", f"{_image(volume.volume_id)}@before-upgrade")
    rig.delete(volume.volume_id)
    rig.pool.wait_until_trash_is_empty()


def test_a_volume_with_the_leftovers_of_snapshots_that_were_cut_off_is_deleted(rig: RbdRig) -> None:
    volume = rig.create("pvc-1")
    for name in (f"csi-snap-{uuids.uuid4()}", f"csi-vol-{uuids.uuid4()}-temp"):
        rig.pool.rbd("snap", "create", f"{_image(volume.volume_id)}@{name}")
    rig.delete(volume.volume_id)
    rig.pool.wait_until_trash_is_empty()


def test_a_snapshot_that_is_open_elsewhere_is_not_deleted(rig: RbdRig) -> None:
    volume = rig.create("pvc-1")
    snapshot = rig.snapshot(volume.volume_id, "snap-1")
    with rig.pool.watched(_image(snapshot.snapshot_id, "csi-snap-")):
        with pytest.raises(grpc.RpcError, match="is still being used: open at client") as refused:
            rig.delete_snapshot(snapshot.snapshot_id)
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    rig.delete_snapshot(snapshot.snapshot_id)


@pytest.mark.parametrize("prefix", ["csi-vol-", "csi-snap-"])
def test_what_is_made_holds_what_the_source_held_at_that_moment(rig: RbdRig, prefix: str) -> None:
    volume = rig.create("pvc-1")
    image = _image(volume.volume_id)
    rig.pool.write(image, b"before" * 1000)
    if prefix == "csi-vol-":
        made = rig.clone(volume.volume_id, "pvc-2")
    else:
        made = rig.restore(rig.snapshot(volume.volume_id, "snap-1").snapshot_id, "pvc-2")
    rig.pool.write(image, b"after!" * 1000)
    assert rig.pool.read(_image(made.volume_id), 6000) == b"before" * 1000
    assert rig.pool.read(image, 6000) == b"after!" * 1000
    rig.delete(volume.volume_id)
    assert rig.pool.read(_image(made.volume_id), 6000) == b"before" * 1000


def test_a_volume_that_cannot_be_opened_for_its_parent_is_not_said_to_be_gone(rig: RbdRig) -> None:
    """So it is for a moment while what a clone hangs on is flattened and removed; NOT_FOUND is believed for good."""
    volume = rig.create("pvc-1")
    clone = rig.clone(volume.volume_id, "pvc-2")
    snapshot = rig.snapshot(clone.volume_id, "snap-1")
    rig.pool.remove_object(f"rbd_header.{rig.pool.image(_image(volume.volume_id))['id']}")
    for call in (
        lambda: rig.snapshot(clone.volume_id, "snap-2"),
        lambda: rig.clone(clone.volume_id, "pvc-3"),
        lambda: rig.restore(snapshot.snapshot_id, "pvc-4"),
    ):
        with pytest.raises(grpc.RpcError, match="it is there, but not all that it hangs on") as refused:
            call()
        assert refused.value.code() is grpc.StatusCode.ABORTED
