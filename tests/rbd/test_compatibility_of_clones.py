"""Snapshots, restored volumes and clones by ceph-csi's rules, whole and cut off."""

import pytest

from csi_host_rbd.testing import ceph_csi
from csi_host_rbd.testing.pools import PoolView
from csi_host_rbd.testing.rig import GIB, RbdRig

pytestmark = pytest.mark.ceph

_EMPTY: dict[str, dict[str, str]] = {"csi.volumes.default": {}, "csi.snaps.default": {}}
_PATTERN = b"what the source holds" * 100


def _assert_nothing_is_left(pool: PoolView) -> None:
    assert pool.journal() in (_EMPTY, {"csi.volumes.default": {}})
    assert pool.images() == []
    pool.wait_until_trash_is_empty()


def _source(pool: PoolView) -> ceph_csi.CephCsiVolume:
    volume = ceph_csi.make_volume(pool, "pvc-1")
    pool.write(volume.image, _PATTERN)
    return volume


def _content(pool: PoolView, image: str) -> bytes:
    return pool.read(image, len(_PATTERN))


def test_all_that_ceph_csi_makes_is_found_restored_from_expanded_and_deleted(rig: RbdRig) -> None:
    pool = rig.pool
    volume = _source(pool)
    snapshot = ceph_csi.make_snapshot(volume, "snap-1")
    restored = ceph_csi.make_restore(snapshot, "pvc-2")
    clone = ceph_csi.make_clone(volume, "pvc-3")
    before = pool.journal()
    assert rig.snapshot(volume.volume_id, "snap-1").snapshot_id == snapshot.snapshot_id
    assert rig.restore(snapshot.snapshot_id, "pvc-2").volume_id == restored.volume_id
    assert rig.clone(volume.volume_id, "pvc-3").volume_id == clone.volume_id
    assert pool.journal() == before
    ours = [
        rig.restore(snapshot.snapshot_id, "pvc-4").volume_id,
        rig.clone(restored.volume_id, "pvc-5").volume_id,
        rig.clone(clone.volume_id, "pvc-6").volume_id,
    ]
    for handle in ours:
        assert _content(pool, f"csi-vol-{handle[-36:]}") == _PATTERN
    assert rig.expand(clone.volume_id, 2 * GIB).capacity_bytes == 2 * GIB
    for handle in [*ours, clone.volume_id, restored.volume_id]:
        rig.delete(handle)
    rig.delete_snapshot(snapshot.snapshot_id)
    rig.delete(volume.volume_id)
    _assert_nothing_is_left(pool)


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 6, 7])
def test_a_snapshot_that_ceph_csi_did_not_finish_is_finished(rig: RbdRig, steps: int) -> None:
    volume = _source(rig.pool)
    theirs = ceph_csi.make_snapshot(volume, "snap-1", steps=steps)
    ours = rig.snapshot(volume.volume_id, "snap-1")
    # Without the uuid's keys the reservation is stale and another uuid takes its place.
    assert (ours.snapshot_id == theirs.snapshot_id) == (steps > 2)
    image = f"csi-snap-{ours.snapshot_id[-36:]}"
    assert rig.pool.snapshots(volume.image) == {image: "trash"}
    assert rig.pool.snapshots(image) == {image: "user"}
    restored = rig.restore(ours.snapshot_id, "pvc-2")
    assert _content(rig.pool, f"csi-vol-{restored.volume_id[-36:]}") == _PATTERN
    rig.delete(restored.volume_id)
    rig.delete_snapshot(ours.snapshot_id)
    rig.delete(volume.volume_id)
    if steps == 1:
        # Nothing leads to an object without a name: that is for fsck.
        rig.pool.remove_object(f"csi.snap.{theirs.uuid}")
    _assert_nothing_is_left(rig.pool)


@pytest.mark.parametrize("steps", [2, 4, 5, 6, 7, 8])
def test_a_clone_that_ceph_csi_did_not_finish_is_finished(rig: RbdRig, steps: int) -> None:
    volume = _source(rig.pool)
    theirs = ceph_csi.make_clone(volume, "pvc-2", steps=steps)
    ours = rig.clone(volume.volume_id, "pvc-2")
    assert (ours.volume_id == theirs.volume_id) == (steps > 2)
    image = f"csi-vol-{ours.volume_id[-36:]}"
    assert _content(rig.pool, image) == _PATTERN
    assert "user" not in rig.pool.snapshots(volume.image).values()
    assert ours == rig.clone(volume.volume_id, "pvc-2")
    rig.delete(ours.volume_id)
    rig.delete(volume.volume_id)
    _assert_nothing_is_left(rig.pool)


@pytest.mark.parametrize("steps", [3, 4])
def test_a_restore_that_ceph_csi_did_not_finish_is_finished(rig: RbdRig, steps: int) -> None:
    volume = _source(rig.pool)
    snapshot = ceph_csi.make_snapshot(volume, "snap-1")
    theirs = ceph_csi.make_restore(snapshot, "pvc-2", steps=steps)
    ours = rig.restore(snapshot.snapshot_id, "pvc-2")
    assert (ours.volume_id == theirs.volume_id) == (steps > 2)
    assert _content(rig.pool, f"csi-vol-{ours.volume_id[-36:]}") == _PATTERN
    rig.delete(ours.volume_id)
    rig.delete_snapshot(snapshot.snapshot_id)
    rig.delete(volume.volume_id)
    _assert_nothing_is_left(rig.pool)


@pytest.mark.parametrize("steps", [4, 6, 8])
def test_a_clone_that_ceph_csi_did_not_finish_is_deleted(rig: RbdRig, steps: int) -> None:
    volume = _source(rig.pool)
    theirs = ceph_csi.make_clone(volume, "pvc-2", steps=steps)
    rig.delete(theirs.volume_id)
    rig.delete(volume.volume_id)
    _assert_nothing_is_left(rig.pool)


@pytest.mark.parametrize("steps", [3, 4, 6])
def test_a_snapshot_that_ceph_csi_did_not_finish_is_deleted(rig: RbdRig, steps: int) -> None:
    volume = _source(rig.pool)
    theirs = ceph_csi.make_snapshot(volume, "snap-1", steps=steps)
    rig.delete_snapshot(theirs.snapshot_id)
    rig.delete(volume.volume_id)
    _assert_nothing_is_left(rig.pool)
