"""GetCapacity on a real cluster."""

import json
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from csi_host.proto import csi_pb2
from csi_host_rbd.devcluster import DevCluster
from csi_host_rbd.testing.clusters import own_cluster
from csi_host_rbd.testing.pools import PoolView
from csi_host_rbd.testing.refusals import refusal
from csi_host_rbd.testing.rig import GIB, SECONDS, RbdRig, block, mounted, rbd_rig

pytestmark = pytest.mark.ceph


@pytest.fixture(scope="module")
def ceph() -> Iterator[DevCluster]:
    """A cluster of these tests' own: they look at all of it, whatever others have left there."""
    with own_cluster() as cluster:
        yield cluster


MIB = 1024**2
_Mode = csi_pb2.VolumeCapability.AccessMode
# What external-provisioner leaves in the class when it asks.
_RESERVED = {
    "csi.storage.k8s.io/provisioner-secret-name": "secret",
    "csi.storage.k8s.io/provisioner-secret-namespace": "ceph",
    "csi.storage.k8s.io/fstype": "xfs",
}


def _capacity(rig: RbdRig, **fields: Any) -> csi_pb2.GetCapacityResponse:
    return rig.served.controller.GetCapacity(csi_pb2.GetCapacityRequest(**fields), timeout=SECONDS)


def _max_avail(pool: PoolView) -> int:
    pools = json.loads(pool.cluster.ceph("df", "--format", "json"))["pools"]
    return next(int(one["stats"]["max_avail"]) for one in pools if one["name"] == pool.name)


@pytest.fixture
def own_rig(whole_pool: PoolView, tmp_path: Path) -> Iterator[RbdRig]:
    """The driver on a pool of the test's own, which can have a quota."""
    with rbd_rig(whole_pool, tmp_path) as one:
        yield one


def test_a_class_has_what_its_pool_has_left_whatever_else_stands_in_it(rig: RbdRig) -> None:
    answer = _capacity(rig, parameters=rig.parameters(**_RESERVED))
    assert answer.available_capacity == pytest.approx(_max_avail(rig.pool), rel=0.05)
    assert answer.available_capacity > GIB
    assert answer.minimum_volume_size.value == MIB
    # A scheduler would take it instead of the capacity, and thin images can be of any size.
    assert not answer.HasField("maximum_volume_size")


def test_the_smallest_size_that_is_answered_can_be_made(rig: RbdRig) -> None:
    size = _capacity(rig, parameters=rig.parameters()).minimum_volume_size.value
    assert rig.create("pvc-1", capacity_range=csi_pb2.CapacityRange(limit_bytes=size)).capacity_bytes == size


def test_without_parameters_the_roomiest_pool_is_the_answer(rig: RbdRig) -> None:
    assert _capacity(rig).available_capacity == pytest.approx(_max_avail(rig.pool), rel=0.05)


def test_a_use_that_no_image_serves_has_no_capacity(rig: RbdRig) -> None:
    shared = mounted(_Mode.MULTI_NODE_MULTI_WRITER)
    for parameters in (rig.parameters(), {}):
        assert _capacity(rig, parameters=parameters, volume_capabilities=[shared]).available_capacity == 0
        served = _capacity(rig, parameters=parameters, volume_capabilities=[block(_Mode.MULTI_NODE_MULTI_WRITER)])
        assert served.available_capacity > 0


def _set_quota(pool: PoolView, kind: str, value: int) -> None:
    pool.cluster.ceph("osd", "pool", "set-quota", pool.name, kind, str(value))


def _wait_until(is_so: Callable[[], bool]) -> None:
    # The figures are some seconds old: the manager's own, and what is kept of them.
    deadline = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.5)


def _conditions(rig: RbdRig, volume_id: str) -> set[tuple[bool, str]]:
    """The conditions of a volume by itself and in the list, which are to be one."""
    asked = csi_pb2.ControllerGetVolumeRequest(volume_id=volume_id)
    seen = rig.served.controller.ControllerGetVolume(asked, timeout=SECONDS).status.volume_condition
    (listed,) = rig.served.controller.ListVolumes(csi_pb2.ListVolumesRequest(), timeout=SECONDS).entries
    return {(one.abnormal, one.message) for one in (seen, listed.status.volume_condition)}


def test_the_quota_bounds_it_and_what_has_reached_it_has_none_and_is_a_condition(own_rig: RbdRig) -> None:
    pool, parameters = own_rig.pool, own_rig.parameters()
    _set_quota(pool, "max_bytes", 64 * MIB)
    assert 0 < _capacity(own_rig, parameters=parameters).available_capacity <= 64 * MIB
    volume = own_rig.create("pvc-1")
    assert {is_abnormal for is_abnormal, _ in _conditions(own_rig, volume.volume_id)} == {False}
    # It has more already: the image's own, and the journal's.
    _set_quota(pool, "max_objects", 1)
    _wait_until(lambda: _capacity(own_rig, parameters=parameters).available_capacity == 0)
    told = f"the pool {pool.name} has reached its quota: writes fail"
    assert _conditions(own_rig, volume.volume_id) == {(True, told)}


def test_a_data_pool_counts_instead_of_the_pool_with_the_names(rig: RbdRig, whole_pool: PoolView) -> None:
    parameters = rig.parameters(dataPool=whole_pool.name)
    _set_quota(whole_pool, "max_bytes", 16 * MIB)
    assert 0 < _capacity(rig, parameters=parameters).available_capacity <= 16 * MIB
    volume = rig.create("pvc-1", parameters=parameters)
    _set_quota(whole_pool, "max_objects", 1)
    _wait_until(lambda: _capacity(rig, parameters=parameters).available_capacity == 0)
    told = f"the pool {whole_pool.name} has reached its quota: writes fail"
    assert _conditions(rig, volume.volume_id) == {(True, told)}
    plain = rig.create("pvc-2")
    rig.delete(volume.volume_id)
    assert {is_abnormal for is_abnormal, _ in _conditions(rig, plain.volume_id)} == {False}


def test_a_class_of_an_unknown_cluster_or_pool_is_an_error_and_not_a_full_one(rig: RbdRig) -> None:
    for name in ("clusterID", "pool", "dataPool"):
        wrong = rig.parameters(**{name: f"none-{uuid.uuid4().hex[:6]}"})
        code, message = refusal(lambda wrong=wrong: _capacity(rig, parameters=wrong))  # type: ignore[misc] # its default
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert name in message or "cluster ID" in message
    for name in ("clusterID", "pool"):
        code, message = refusal(lambda name=name: _capacity(rig, parameters={**rig.parameters(), name: ""}))  # type: ignore[misc] # its default
        assert (code, message) == (grpc.StatusCode.INVALID_ARGUMENT, f"parameters[{name}]: required")


def test_a_pool_that_was_made_a_moment_ago_has_its_room_at_once(rig: RbdRig) -> None:
    _capacity(rig, parameters=rig.parameters())
    pool = PoolView(cluster=rig.pool.cluster, name=f"test-{uuid.uuid4().hex[:8]}")
    pool.cluster.create_pool(pool.name)
    assert _capacity(rig, parameters=rig.parameters(pool=pool.name)).available_capacity > GIB
    pool.cluster.delete_pool(pool.name)


def test_it_costs_no_operation_of_an_osd(rig: RbdRig) -> None:
    _capacity(rig, parameters=rig.parameters())
    with rig.counter.counting() as count:
        _capacity(rig, parameters=rig.parameters())
        _capacity(rig)
    assert count.operations == 0


def test_of_a_topology_the_first_pool_that_serves_it_counts(rig: RbdRig, whole_pool: PoolView) -> None:
    _set_quota(whole_pool, "max_bytes", 16 * MIB)
    pools = [
        {"poolName": name, "domainSegments": [{"domainLabel": "zone", "value": zone}]}
        for name, zone in ((whole_pool.name, "east"), (rig.pool.name, "west"), (rig.pool.name, "east"))
    ]
    parameters = {"clusterID": rig.pool.cluster.cluster_id, "topologyConstrainedPools": json.dumps(pools)}

    def available(zone: str = "") -> int:
        topology = {"accessible_topology": csi_pb2.Topology(segments={"topology.rbd/zone": zone})} if zone else {}
        return _capacity(rig, parameters=parameters, **topology).available_capacity

    assert 0 < available("east") <= 16 * MIB
    assert available("west") > GIB
    assert available("north") == 0
    # Without a topology, the roomiest pool of the class.
    assert available() == available("west")
