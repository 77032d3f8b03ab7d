"""Defects that a driver of this layout had (contract, section 17), each arranged, and not there."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from csi_host.errors import Internal
from csi_host.proto import csi_pb2
from csi_host_rbd.testing import ceph_csi
from csi_host_rbd.testing.pools import PoolView
from csi_host_rbd.testing.rig import GIB, RbdRig, rbd_rig

pytestmark = pytest.mark.ceph

_NOTHING: dict[str, dict[str, str]] = {"csi.volumes.default": {}, "csi.snaps.default": {}}
_PV_NAME = "csi.storage.k8s.io/pv/name"
_SNAPSHOT_NAME = "csi.storage.k8s.io/volumesnapshot/name"


class _Refusing:
    """Refuses the steps that begin like this."""

    def __init__(self, beginning: str) -> None:
        self.beginning = beginning

    def before(self, step: str) -> None:
        if self.beginning and step.startswith(self.beginning):
            raise Internal(f"refused: {step}")

    def after(self, step: str) -> None:
        """Nothing is refused when it is done."""


@contextmanager
def _refusing(pool: PoolView, directory: Path) -> Iterator[tuple[RbdRig, _Refusing]]:
    refusing = _Refusing("")
    with rbd_rig(pool, directory, observers=[refusing], set_metadata=True) as rig:
        yield rig, refusing


def _image(handle: str) -> str:
    return f"csi-vol-{handle[-36:]}"


def test_fact_6_a_clone_that_failed_is_an_error_and_leaves_no_snapshot(pool: PoolView, tmp_path: Path) -> None:
    with _refusing(pool, tmp_path) as (rig, refusing):
        volume = rig.create("pvc-1")
        for step in ("cloning", "removing snapshot"):
            refusing.beginning = step
            with pytest.raises(grpc.RpcError, match="refused"):
                rig.clone(volume.volume_id, "pvc-2")
            refusing.beginning = ""
            # The removal of a snapshot is refused while that is undone too: then the next call does it.
            clone = rig.clone(volume.volume_id, "pvc-2")
            assert rig.pool.snapshots(_image(volume.volume_id)) == {_image(clone.volume_id): "trash"}
            assert rig.pool.image(_image(clone.volume_id))["parent"]["image"] == _image(volume.volume_id)
            rig.delete(clone.volume_id)
            rig.pool.wait_until_trash_is_empty()
        assert rig.pool.images() == [_image(volume.volume_id)]
        assert rig.pool.snapshots(_image(volume.volume_id)) == {}


@pytest.mark.parametrize("steps", [6, 8, 9])
def test_fact_7_an_interrupted_clone_is_answered_with_its_handle_and_its_image_is_noted(
    rig: RbdRig, steps: int
) -> None:
    source = ceph_csi.make_volume(rig.pool, "pvc-1")
    begun = ceph_csi.make_clone(source, "pvc-2", steps=steps)
    clone = rig.clone(source.volume_id, "pvc-2")
    assert clone.volume_id == begun.volume_id
    assert rig.pool.keys(f"csi.volume.{begun.uuid}")["csi.imageid"] == rig.pool.image(begun.image)["id"]


def test_fact_8_repeating_a_restore_does_not_shrink_what_was_grown_meanwhile(rig: RbdRig) -> None:
    volume = rig.create("pvc-1")
    snapshot = rig.snapshot(volume.volume_id, "snap-1")

    def restore() -> csi_pb2.Volume:
        return rig.restore(snapshot.snapshot_id, "pvc-2")

    def clone() -> csi_pb2.Volume:
        return rig.clone(volume.volume_id, "pvc-3")

    for make in (restore, clone):
        copy = make()
        rig.expand(copy.volume_id, 3 * GIB)
        repeated = make()
        assert (repeated.volume_id, repeated.capacity_bytes) == (copy.volume_id, 3 * GIB)
        assert rig.pool.image(_image(copy.volume_id))["size"] == 3 * GIB


@pytest.mark.parametrize("kind", ["blank", "clone"])
def test_fact_9_after_a_delete_that_was_cut_off_the_name_gets_a_new_handle_and_the_id_of_its_own_image(
    rig: RbdRig, kind: str
) -> None:
    source = rig.create("pvc-1")

    def make() -> str:
        made = rig.create("pvc-2") if kind == "blank" else rig.clone(source.volume_id, "pvc-2")
        return str(made.volume_id)

    old = make()
    rig.pool.rbd("trash", "mv", _image(old))
    new = make()
    assert new != old
    assert rig.pool.keys(f"csi.volume.{new[-36:]}")["csi.imageid"] == rig.pool.image(_image(new))["id"]
    rig.delete(old)
    assert _image(new) in rig.pool.images()
    rig.delete(new)
    rig.pool.wait_until_trash_is_empty()


def test_fact_10_a_chain_is_counted_through_the_trash(pool: PoolView, tmp_path: Path) -> None:
    with rbd_rig(pool, tmp_path, options={"rbdhardmaxclonedepth": 2, "rbdsoftmaxclonedepth": 2}) as rig:
        volume = rig.create("pvc-1")
        clone = rig.clone(volume.volume_id, "pvc-2")
        rig.delete(volume.volume_id)
        assert rig.pool.trash() == [_image(volume.volume_id)]
        with pytest.raises(grpc.RpcError, match="flatten") as refused:
            rig.clone(clone.volume_id, "pvc-3")
        assert refused.value.code() is grpc.StatusCode.ABORTED


def test_fact_10_a_restore_looks_at_the_image_of_the_snapshot_and_not_at_its_source(
    pool: PoolView, tmp_path: Path
) -> None:
    with rbd_rig(pool, tmp_path, options={"rbdhardmaxclonedepth": 2, "rbdsoftmaxclonedepth": 2}) as rig:
        volume = rig.create("pvc-1")
        snapshot = rig.snapshot(volume.volume_id, "snap-1")
        image = f"csi-snap-{snapshot.snapshot_id[-36:]}"
        assert not snapshot.ready_to_use
        pool.wait_until(lambda: "parent" not in pool.image(image), "the snapshot's image is flat")
        assert rig.snapshot(volume.volume_id, "snap-1").ready_to_use
        restored = rig.restore(snapshot.snapshot_id, "pvc-2")
        assert pool.image(_image(restored.volume_id))["parent"]["image"] == image


def test_fact_14_a_snapshot_whose_names_could_not_be_written_is_not_left_in_the_trash(
    pool: PoolView, tmp_path: Path
) -> None:
    with _refusing(pool, tmp_path) as (rig, refusing):
        volume = rig.create("pvc-1")
        refusing.beginning = "writing metadata"
        with pytest.raises(grpc.RpcError, match="refused"):
            rig.snapshot(volume.volume_id, "snap-1", parameters={_SNAPSHOT_NAME: "snap-1"})
        with pytest.raises(grpc.RpcError, match="refused"):
            rig.clone(volume.volume_id, "pvc-2", parameters=rig.parameters() | {_PV_NAME: "pv-2"})
        rig.pool.wait_until_trash_is_empty()
        assert rig.pool.images() == [_image(volume.volume_id)]
        assert rig.pool.snapshots(_image(volume.volume_id)) == {}
        rig.delete(volume.volume_id)
        rig.pool.wait_until_trash_is_empty()
        assert rig.pool.journal() == _NOTHING
