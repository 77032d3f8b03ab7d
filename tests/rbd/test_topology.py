"""Classes whose pool depends on where the volume is used."""

from collections.abc import Mapping
from typing import Any

import grpc
import pytest

from csi_host.errors import InvalidArgument
from csi_host.proto import csi_pb2
from csi_host_rbd.testing.pools import PoolView
from csi_host_rbd.testing.rig import RbdRig
from csi_host_rbd.topology import TopologyPool, TopologyRequirement, TopologyUnserved, choices, parse_pools

EAST, WEST = {"topology.rbd.csi.ceph.com/zone": "east"}, {"topology.rbd.csi.ceph.com/zone": "west"}
_POOLS = """[{"poolName": "fast", "dataPool": "fast-data", "domainSegments": [
  {"domainLabel": "zone", "value": "east"}]},
 {"poolName": "slow", "domainSegments": [{"domainLabel": "topology.kubernetes.io/zone", "value": "west"}]}]"""


def test_the_pools_of_a_class_are_read() -> None:
    assert parse_pools(_POOLS) == (
        TopologyPool(pool="fast", data_pool="fast-data", domains={"zone": "east"}),
        TopologyPool(pool="slow", domains={"topology.kubernetes.io/zone": "west"}),
    )
    assert parse_pools("") == ()


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", "[1]", '[{"poolName": ""}]', '[{"poolName": "a", "domainSegments": [{}]}]',
             '[{"poolName": "a", "dataPool": 1}]', '[{"poolName": "a", "domainSegments": 1}]', "null"],
)  # fmt: skip
def test_pools_that_are_not_understood_are_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidArgument, match="topologyConstrainedPools"):
        parse_pools(text)


def test_preferred_topologies_come_first_and_other_segments_do_not_matter() -> None:
    pools = parse_pools(_POOLS)
    found = choices(pools, TopologyRequirement(preferred=[WEST | {"a/rack": "1"}], requisite=[EAST, WEST]))
    assert [(choice.pool.pool, choice.segments) for choice in found] == [
        ("slow", WEST | {"a/rack": "1"}),
        ("fast", EAST),
    ]
    with pytest.raises(TopologyUnserved, match="fast, slow"):
        choices(pools, TopologyRequirement(requisite=[{"a/zone": "north"}]))


def test_a_pool_without_domains_serves_everybody() -> None:
    (choice,) = choices(parse_pools('[{"poolName": "any"}]'), TopologyRequirement(requisite=[EAST]))
    assert (choice.pool.pool, choice.segments) == ("any", EAST)


@pytest.fixture
def other(rig: RbdRig, whole_pool: PoolView) -> PoolView:
    """A second pool, with the RADOS namespace of the first."""
    rig.pool.cluster.rbd("namespace", "create", "--pool", whole_pool.name, "--namespace", rig.pool.namespace)
    return PoolView(cluster=whole_pool.cluster, name=whole_pool.name, namespace=rig.pool.namespace)


def _constrained(rig: RbdRig, other: PoolView) -> dict[str, Any]:
    pools = (
        f'[{{"poolName": "{rig.pool.name}", "domainSegments": [{{"domainLabel": "zone", "value": "east"}}]}},'
        f' {{"poolName": "{other.name}", "domainSegments": [{{"domainLabel": "zone", "value": "west"}}]}}]'
    )
    parameters = rig.parameters(topologyConstrainedPools=pools)
    del parameters["pool"]
    return {"parameters": parameters}


def _at(*preferred: Mapping[str, str]) -> csi_pb2.TopologyRequirement:
    topologies = [csi_pb2.Topology(segments=segments) for segments in preferred]
    return csi_pb2.TopologyRequirement(preferred=topologies, requisite=topologies)


@pytest.mark.ceph
def test_a_volume_goes_where_it_is_used_and_says_so(rig: RbdRig, other: PoolView) -> None:
    constrained = _constrained(rig, other)
    west = rig.create("pvc-1", accessibility_requirements=_at(WEST), **constrained)
    east = rig.create("pvc-2", accessibility_requirements=_at(EAST), **constrained)
    assert (west.volume_context["pool"], east.volume_context["pool"]) == (other.name, rig.pool.name)
    assert [dict(topology.segments) for topology in west.accessible_topology] == [WEST]
    assert "topologyConstrainedPools" not in west.volume_context
    # Another order of preference does not make a second volume.
    assert rig.create("pvc-1", accessibility_requirements=_at(EAST, WEST), **constrained).volume_id == west.volume_id
    with pytest.raises(grpc.RpcError) as refused:
        rig.create("pvc-3", accessibility_requirements=_at({"a/zone": "north"}), **constrained)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    with pytest.raises(grpc.RpcError, match=r"parameters\[pool\]") as refused:
        rig.create("pvc-3", **constrained)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    for volume in (west, east):
        rig.delete(volume.volume_id)
    assert (rig.pool.images(), other.images()) == ([], [])


@pytest.mark.ceph
def test_what_is_made_from_a_snapshot_stays_in_its_pool(rig: RbdRig, other: PoolView) -> None:
    constrained = _constrained(rig, other)
    volume = rig.create("pvc-1", accessibility_requirements=_at(WEST), **constrained)
    snapshot = rig.snapshot(volume.volume_id, "snap-1")
    restored = rig.restore(snapshot.snapshot_id, "pvc-2", accessibility_requirements=_at(EAST, WEST), **constrained)
    assert restored.volume_context["pool"] == other.name
    with pytest.raises(grpc.RpcError, match="volume_content_source") as refused:
        rig.restore(snapshot.snapshot_id, "pvc-3", accessibility_requirements=_at(EAST), **constrained)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
