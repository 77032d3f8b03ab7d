"""What controllers make, ours and ceph-csi, is whole at every age and in every order of deletion."""

import time

import pytest

from csi_host_rbd.testing import ceph_csi
from csi_host_rbd.testing.fsck_kit import Checker
from csi_host_rbd.testing.pools import PoolView
from csi_host_rbd.testing.rig import RbdRig

pytestmark = pytest.mark.ceph

_SECONDS = 60.0


def test_volumes_snapshots_and_clones_of_ours_are_whole_while_their_sources_go(rig: RbdRig, checker: Checker) -> None:
    volume = rig.create("pvc-1")
    snapshot = rig.snapshot(volume.volume_id, "snap-1")
    restored = rig.restore(snapshot.snapshot_id, "pvc-2")
    clone = rig.clone(volume.volume_id, "pvc-3")
    assert checker.found() == []
    rig.delete(volume.volume_id)
    _wait_for_a_failed_try(rig.pool)
    assert checker.found() == [], "the volume's image waits in the trash until its clones have gone"
    rig.delete_snapshot(snapshot.snapshot_id)
    assert checker.found() == []
    for one in (restored, clone):
        rig.delete(one.volume_id)
    assert checker.found() == []


def test_volumes_snapshots_and_clones_of_ceph_csi_are_whole(pool: PoolView, checker: Checker) -> None:
    volume = ceph_csi.make_volume(pool, "pvc-1", size="4M")
    snapshot = ceph_csi.make_snapshot(volume, "snap-1")
    ceph_csi.make_restore(snapshot, "pvc-2")
    ceph_csi.make_clone(volume, "pvc-3")
    before = checker.dump()
    report = checker.run(repairs=True, removes_data=True)
    assert (report.outcomes, report.young) == ((), 0)
    assert checker.dump() == before


@pytest.mark.parametrize("steps", [4, 5, 6, 7, 8])
def test_a_snapshot_that_ceph_csi_did_not_finish_loses_nothing_but_itself(
    pool: PoolView, checker: Checker, steps: int
) -> None:
    volume = ceph_csi.make_volume(pool, "pvc-1", size="4M")
    before = checker.dump()
    ceph_csi.make_snapshot(volume, "snap-1", steps=steps)
    checker.run(repairs=True, removes_data=True)
    assert set(checker.found()) <= {"image-id-missing"}
    after = checker.dump()
    for name in before:
        if name.startswith(("csi.volume.", "rbd_id.", "rbd_data.")):
            assert after[name] == before[name]


@pytest.mark.parametrize("steps", [3, 4, 5, 7, 8, 9])
def test_a_clone_that_ceph_csi_did_not_finish_is_still_finished_by_the_retry_after_a_repair(
    rig: RbdRig, checker: Checker, steps: int
) -> None:
    volume = ceph_csi.make_volume(rig.pool, "pvc-1")
    ceph_csi.make_clone(volume, "pvc-2", steps=steps)
    checker.run(repairs=True, removes_data=True)
    clone = rig.clone(volume.volume_id, "pvc-2")
    assert checker.found() == []
    rig.delete(clone.volume_id)
    assert checker.found() == []
    assert [image for image in rig.pool.images() if image != volume.image] == []


def _wait_for_a_failed_try(pool: PoolView) -> None:
    deadline = time.monotonic() + _SECONDS
    while '"retry_attempts": 1' not in pool.cluster.ceph("rbd", "task", "list", "--format", "json-pretty"):
        assert time.monotonic() < deadline, "the manager has not tried it"
        time.sleep(0.2)
