from pathlib import Path

import grpc
import pytest

from csi_host.driver import Driver, HostContext
from csi_host.errors import NotFound
from csi_host.node.stats import Usage, VolumeStats
from csi_host.proto import csi_pb2
from csi_host.services.node import NodeServer
from csi_host.testing.contexts import host_context
from csi_host.testing.server import serving

REQUEST = csi_pb2.NodeGetVolumeStatsRequest(volume_id="v", volume_path="/mnt/v")


def stats_from(context: HostContext) -> csi_pb2.NodeGetVolumeStatsResponse:
    with serving(Driver(node=NodeServer(context))) as served:
        return served.node.NodeGetVolumeStats(REQUEST, timeout=10)


def info_from(server: NodeServer) -> csi_pb2.NodeGetInfoResponse:
    with serving(Driver(node=server)) as served:
        return served.node.NodeGetInfo(csi_pb2.NodeGetInfoRequest(), timeout=10)


def test_a_node_without_topology_says_nothing_of_it(tmp_path: Path) -> None:
    info = info_from(NodeServer(host_context(tmp_path, node_id="worker-7")))
    assert info.node_id == "worker-7"
    assert info.max_volumes_per_node == 0
    assert not info.HasField("accessible_topology")


def test_a_node_with_topology_says_where_it_is(tmp_path: Path) -> None:
    segments = {"topology.example/zone": "z1", "topology.example/rack": "r3"}
    info = info_from(NodeServer(host_context(tmp_path, topology=segments)))
    assert dict(info.accessible_topology.segments) == segments


def test_a_driver_can_limit_the_volumes_of_a_node(tmp_path: Path) -> None:
    class Limited(NodeServer):
        max_volumes_per_node = 16

    assert info_from(Limited(host_context(tmp_path))).max_volumes_per_node == 16


def test_a_node_without_an_id_is_refused_clearly(tmp_path: Path) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        info_from(NodeServer(host_context(tmp_path, node_id="")))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "node id" in str(caught.value.details())


def test_the_default_capabilities_are_stats_and_condition(tmp_path: Path) -> None:
    with serving(Driver(node=NodeServer(host_context(tmp_path)))) as served:
        response = served.node.NodeGetCapabilities(csi_pb2.NodeGetCapabilitiesRequest())
    types = csi_pb2.NodeServiceCapability.RPC.Type
    assert [types.Name(capability.rpc.type) for capability in response.capabilities] == [
        "GET_VOLUME_STATS",
        "VOLUME_CONDITION",
    ]


def test_the_stats_of_a_filesystem_are_bytes_and_inodes(tmp_path: Path) -> None:
    stats = VolumeStats(bytes=Usage(total=100, used=40, available=55), inodes=Usage(total=10, used=4, available=6))
    response = stats_from(host_context(tmp_path, volume_stats=lambda _path: stats))
    assert [(usage.unit, usage.total, usage.used, usage.available) for usage in response.usage] == [
        (csi_pb2.VolumeUsage.BYTES, 100, 40, 55),
        (csi_pb2.VolumeUsage.INODES, 10, 4, 6),
    ]
    assert not response.volume_condition.abnormal
    assert response.volume_condition.message


def test_the_stats_of_a_block_device_are_its_size(tmp_path: Path) -> None:
    stats = VolumeStats(bytes=Usage(total=100, used=0, available=0))
    [usage] = stats_from(host_context(tmp_path, volume_stats=lambda _path: stats)).usage
    assert (usage.unit, usage.total) == (csi_pb2.VolumeUsage.BYTES, 100)


def test_a_dead_mount_is_an_answer_with_an_abnormal_condition(tmp_path: Path) -> None:
    stats = VolumeStats(abnormal=True, message="the mount does not answer")
    response = stats_from(host_context(tmp_path, volume_stats=lambda _path: stats))
    assert not response.usage
    assert response.volume_condition.abnormal
    assert response.volume_condition.message == "the mount does not answer"


def test_the_stats_are_asked_for_at_the_path_of_the_request(tmp_path: Path) -> None:
    asked: list[Path] = []

    def volume_stats(path: Path) -> VolumeStats:
        asked.append(path)
        raise NotFound(f"volume_path: nothing is mounted at {path}")

    with pytest.raises(grpc.RpcError) as caught:
        stats_from(host_context(tmp_path, volume_stats=volume_stats))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert asked == [Path("/mnt/v")]


def test_stats_take_no_lock(tmp_path: Path) -> None:
    context = host_context(tmp_path, volume_stats=lambda _path: VolumeStats(bytes=Usage(total=1, used=1, available=0)))
    with context.volume_locks.hold("v"):
        assert stats_from(context).usage[0].total == 1


def test_what_a_driver_does_not_override_is_unimplemented(tmp_path: Path) -> None:
    with serving(Driver(node=NodeServer(host_context(tmp_path)))) as served, pytest.raises(grpc.RpcError) as caught:
        served.node.NodeUnpublishVolume(csi_pb2.NodeUnpublishVolumeRequest(volume_id="v", target_path="/t"))
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert caught.value.details() == "NodeUnpublishVolume: this driver does not serve it"
