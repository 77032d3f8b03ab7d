"""What the RPCs cost: requests to the OSDs, by the client's own counter, however many volumes there are."""

import pytest

from csi_host_rbd.testing.pools import PoolView
from csi_host_rbd.testing.rig import RbdRig, rbd_rig

pytestmark = pytest.mark.ceph

_NAMES = {
    "csi.storage.k8s.io/pvc/name": "data",
    "csi.storage.k8s.io/pvc/namespace": "shop",
    "csi.storage.k8s.io/pv/name": "pvc-1",
}


@pytest.fixture
def connected(rig: RbdRig) -> RbdRig:
    """A rig whose connection is open and has asked every kind of question once."""
    rig.delete(rig.create("warm-up").volume_id)
    return rig


@pytest.mark.parametrize("entries", [10, 2000])
def test_create_costs_12_operations_and_delete_36_whatever_the_journal_holds(connected: RbdRig, entries: int) -> None:
    others = {f"csi.volume.other-{number}": "-" * 36 for number in range(entries)}
    connected.pool.set_keys("csi.volumes.default", others)
    with connected.counter.counting() as creation:
        volume = connected.create("pvc-1")
    with connected.counter.counting() as deletion:
        connected.delete(volume.volume_id)
    assert creation.operations <= 12
    assert deletion.operations <= 36
    assert set(connected.pool.key_names("csi.volumes.default")) == set(others)


def test_three_keys_of_metadata_make_it_43(pool: PoolView, tmp_path_factory: pytest.TempPathFactory) -> None:
    with rbd_rig(pool, tmp_path_factory.mktemp("m"), set_metadata=True) as marking:
        marking.delete(marking.create("warm-up").volume_id)
        with marking.counter.counting() as creation:
            marking.create("pvc-1", parameters=marking.parameters(**_NAMES))
    assert creation.operations <= 43


def test_a_retry_of_create_reads_and_writes_nothing(connected: RbdRig) -> None:
    connected.create("pvc-1")
    before = connected.pool.journal()
    with connected.counter.counting() as retry:
        connected.create("pvc-1")
    # Directory key, the uuid's keys, a read-only open (11) and one more for what it shows.
    assert retry.operations <= 14
    assert connected.pool.journal() == before


def test_delete_asks_the_manager_once(connected: RbdRig) -> None:
    volume = connected.create("pvc-1")
    before = connected.pool.manager_commands()
    connected.delete(volume.volume_id)
    assert connected.pool.manager_commands() - before == 1


def test_what_is_made_from_a_volume_or_a_snapshot_costs_a_third_of_ceph_csi(connected: RbdRig) -> None:
    volume = connected.create("pvc-1")
    with connected.counter.counting() as snapshotting:
        snapshot = connected.snapshot(volume.volume_id, "snap-1")
    with connected.counter.counting() as restoring:
        connected.restore(snapshot.snapshot_id, "pvc-2")
    with connected.counter.counting() as cloning:
        connected.clone(volume.volume_id, "pvc-3")
    assert snapshotting.operations <= 220
    assert restoring.operations <= 160
    assert cloning.operations <= 180
