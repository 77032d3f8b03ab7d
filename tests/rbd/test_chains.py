"""Chains of clones and numbers of snapshots at their limits."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import grpc
import pytest

from csi_host_rbd.ceph import image_names, parents
from csi_host_rbd.testing.pools import PoolView
from csi_host_rbd.testing.rig import RbdRig, rbd_rig

pytestmark = pytest.mark.ceph

MakeRig = Callable[..., AbstractContextManager[RbdRig]]


@pytest.fixture
def limited(pool: PoolView, tmp_path_factory: pytest.TempPathFactory) -> MakeRig:
    @contextmanager
    def make(**limits: int) -> Iterator[RbdRig]:
        with rbd_rig(pool, tmp_path_factory.mktemp("limited"), options=dict(limits)) as rig:
            yield rig

    return make


def _image(handle: str, prefix: str = "csi-vol-") -> str:
    return prefix + handle[-36:]


def _has_parent(rig: RbdRig, image: str) -> bool:
    # As the header says: an image cannot be opened at the moment in which what it hung on is removed.
    with rig.pool.connected() as pool:
        return parents.has_parent(pool, image_names.read_image_id(pool, image))


def _restore_when_flat(rig: RbdRig, snapshot_id: str, name: str) -> str:
    done: list[str] = []

    def is_done() -> bool:
        try:
            done.append(rig.restore(snapshot_id, name).volume_id)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.ABORTED or "flatten in progress" not in str(error.details()):
                raise
        return bool(done)

    rig.pool.wait_until(is_done, f"{name} is restored")
    return done[0]


def test_at_the_hard_depth_a_snapshot_is_not_ready_and_is_flattened_before_it_is_restored(limited: MakeRig) -> None:
    # A restored volume hangs on 2: the snapshot's image and the volume.
    with limited(rbdhardmaxclonedepth=2, rbdsoftmaxclonedepth=2) as rig:
        volume = rig.create("pvc-1")
        snapshot = rig.snapshot(volume.volume_id, "snap-1")
        assert not snapshot.ready_to_use
        restored = _restore_when_flat(rig, snapshot.snapshot_id, "pvc-2")
        assert rig.snapshot(volume.volume_id, "snap-1").ready_to_use
        assert not _has_parent(rig, _image(snapshot.snapshot_id, "csi-snap-"))
        assert rig.pool.snapshots(_image(volume.volume_id)) == {}
        for handle in (restored, volume.volume_id):
            rig.delete(handle)
        rig.delete_snapshot(snapshot.snapshot_id)
        rig.pool.wait_until_trash_is_empty()


def test_at_the_soft_depth_a_snapshot_is_flattened_beside_other_work(limited: MakeRig) -> None:
    with limited(rbdhardmaxclonedepth=8, rbdsoftmaxclonedepth=1) as rig:
        volume = rig.create("pvc-1")
        snapshot = rig.snapshot(volume.volume_id, "snap-1")
        assert snapshot.ready_to_use
        image = _image(snapshot.snapshot_id, "csi-snap-")
        rig.pool.wait_until(lambda: not _has_parent(rig, image), "the snapshot stands alone")


def test_at_the_soft_depth_it_is_the_new_clone_that_is_flattened_not_the_volume_in_use(limited: MakeRig) -> None:
    with limited(rbdhardmaxclonedepth=8, rbdsoftmaxclonedepth=2) as rig:
        first = rig.create("pvc-1")
        second = rig.clone(first.volume_id, "pvc-2")
        third = rig.clone(second.volume_id, "pvc-3")
        rig.pool.wait_until(lambda: not _has_parent(rig, _image(third.volume_id)), "the new clone stands alone")
        assert _has_parent(rig, _image(second.volume_id))


def test_a_snapshot_in_the_chain_is_flattened_rather_than_a_volume(limited: MakeRig) -> None:
    with limited(rbdhardmaxclonedepth=3, rbdsoftmaxclonedepth=3) as rig:
        volume = rig.create("pvc-1")
        snapshot = rig.snapshot(volume.volume_id, "snap-1")
        restored = rig.restore(snapshot.snapshot_id, "pvc-2")
        with pytest.raises(grpc.RpcError, match="flatten in progress") as refused:
            rig.clone(restored.volume_id, "pvc-3")
        assert refused.value.code() is grpc.StatusCode.ABORTED
        image = _image(snapshot.snapshot_id, "csi-snap-")
        rig.pool.wait_until(lambda: not _has_parent(rig, image), "the snapshot stands alone")
        clone = rig.clone(restored.volume_id, "pvc-3")
        assert _has_parent(rig, _image(clone.volume_id))
        assert _has_parent(rig, _image(restored.volume_id))


def test_a_volume_with_too_many_snapshots_takes_no_more_until_its_clones_are_flat(limited: MakeRig) -> None:
    with limited(maxsnapshotsonimage=2, minsnapshotsonimage=2) as rig:
        volume = rig.create("pvc-1")
        clones = [rig.clone(volume.volume_id, f"pvc-2{number}") for number in range(3)]
        before = rig.pool.journal()
        with pytest.raises(grpc.RpcError, match="has 3 snapshots, the limit is 2") as refused:
            rig.snapshot(volume.volume_id, "snap-1")
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert rig.pool.journal() == before
        rig.pool.wait_until(
            lambda: not any(_has_parent(rig, _image(clone.volume_id)) for clone in clones), "the clones stand alone"
        )
        assert rig.snapshot(volume.volume_id, "snap-1").ready_to_use


def test_from_the_soft_number_of_snapshots_on_the_youngest_clones_are_flattened(limited: MakeRig) -> None:
    with limited(maxsnapshotsonimage=9, minsnapshotsonimage=2) as rig:
        volume = rig.create("pvc-1")
        clones = [rig.clone(volume.volume_id, f"pvc-2{number}") for number in range(4)]
        rig.pool.wait_until(lambda: not _has_parent(rig, _image(clones[2].volume_id)), "the third stands alone")
        assert _has_parent(rig, _image(clones[0].volume_id))
