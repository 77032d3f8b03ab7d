"""Ten thousand random requests: every answer is one the spec knows, and neither it nor the log gives anything away."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from csi_host.node.mounts import mounts_below
from csi_host.proto import csi_pb2
from csi_host.testing import host_process
from csi_host.testing.host_process import HostProcess
from csi_host.testing.random_requests import requests
from csi_host_rbd.testing.pools import PoolView
from csi_host_rbd.testing.rig import GIB, RbdRig, block, mounted, write_clusters_file

pytestmark = [pytest.mark.ceph, pytest.mark.root, pytest.mark.timeout(900)]

_EXAMPLES = 10_000
_SECONDS = 60.0
_TOKENS = "csi.storage.k8s.io/serviceAccount.tokens"
_SECRET = "unguessable-Zm9vYmFyYmF6cXV4"
# UNKNOWN is gRPC's word for an exception that nobody caught, INTERNAL is ours; on a cluster that is well nothing is
# unavailable or late.
_ALLOWED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.UNAUTHENTICATED,
}
_METHODS = [method for service in csi_pb2.DESCRIPTOR.services_by_name.values() for method in service.methods]


@pytest.fixture
def host(pool: PoolView, tmp_path: Path) -> Iterator[HostProcess]:
    """A csi-host process with every service of the rbd driver, logging all it can."""
    arguments = [
        "--driver=rbd",
        "--nodeid=node-a",
        "--loglevel=debug",
        f"--cephcsiconfig={write_clusters_file(pool, tmp_path)}",
        f"--controllersecret={pool.cluster.secret_file}",
    ]
    with (
        tempfile.TemporaryDirectory(prefix="csi-") as sockets,
        host_process.serving(arguments, socket=Path(sockets) / "csi.sock", log_file=tmp_path / "host.log") as process,
    ):
        yield process


def _seeds(rig: RbdRig, volume: csi_pb2.Volume, directory: Path) -> dict[str, list[Message]]:
    """Return requests that are right, by the name of their message."""
    whole: dict[str, Any] = {"volume_id": volume.volume_id, "secrets": rig.secrets}
    paths: dict[str, Any] = {"volume_path": str(directory), "staging_target_path": str(directory)}
    # This mounter is known and not served: chance attaches nothing.
    context = {**volume.volume_context, "mounter": "rbd"}
    staged = {**whole, "staging_target_path": str(directory), "volume_capability": mounted(), "volume_context": context}
    size = csi_pb2.CapacityRange(required_bytes=GIB)
    seeds: list[Message] = [
        rig.create_request("pvc-1"),
        rig.create_request("pvc-2", volume_capabilities=[block()]),
        csi_pb2.DeleteVolumeRequest(volume_id=f"{volume.volume_id[:-1]}x", secrets=rig.secrets),
        csi_pb2.ControllerExpandVolumeRequest(**whole, capacity_range=size),
        csi_pb2.ValidateVolumeCapabilitiesRequest(**whole, volume_capabilities=[mounted()]),
        csi_pb2.ControllerModifyVolumeRequest(**whole, mutable_parameters={"maxIops": "100", "metadata/a": "b"}),
        csi_pb2.ControllerGetVolumeRequest(volume_id=volume.volume_id),
        csi_pb2.ListVolumesRequest(max_entries=1),
        csi_pb2.ListSnapshotsRequest(max_entries=1, source_volume_id=volume.volume_id),
        csi_pb2.GetCapacityRequest(parameters=rig.parameters(), volume_capabilities=[mounted()]),
        csi_pb2.NodeStageVolumeRequest(**staged),
        csi_pb2.NodePublishVolumeRequest(**staged, target_path=str(directory / "target")),
        csi_pb2.NodeUnstageVolumeRequest(volume_id=volume.volume_id, staging_target_path=str(directory)),
        csi_pb2.NodeUnpublishVolumeRequest(volume_id=volume.volume_id, target_path=str(directory / "target")),
        csi_pb2.NodeGetVolumeStatsRequest(volume_id=volume.volume_id, **paths),
        csi_pb2.NodeExpandVolumeRequest(volume_id=volume.volume_id, **paths, capacity_range=size),
    ]
    by_name: dict[str, list[Message]] = {}
    for seed in seeds:
        by_name.setdefault(seed.DESCRIPTOR.full_name, []).append(seed)
    return by_name


def _strategy(
    rig: RbdRig, volume: csi_pb2.Volume, directory: Path
) -> st.SearchStrategy[tuple[MethodDescriptor, Message]]:
    texts = ["pvc-1", volume.volume_id, f"{volume.volume_id[:-1]}x", str(directory), str(directory / "target")]
    maps = {
        "secrets": [rig.secrets, {"userID": "csi", "userKey": _SECRET}, {"passphrase": _SECRET}, {}],
        "parameters": [rig.parameters(), rig.parameters(pool="nix"), rig.parameters(imageFeatures="x"), {}],
        "volume_context": [
            {**volume.volume_context, "mounter": "rbd"},
            {"csi.storage.k8s.io/serviceAccount.tokens": _SECRET},
            {},
        ],
    }
    seeds = _seeds(rig, volume, directory)

    def requests_of(method: MethodDescriptor) -> st.SearchStrategy[tuple[MethodDescriptor, Message]]:
        made = requests(method.input_type, texts=texts, maps=maps, seeds=seeds.get(method.input_type.full_name, ()))
        return st.tuples(st.just(method), made)

    return st.sampled_from(_METHODS).flatmap(requests_of)


def _call(channel: grpc.Channel, method: MethodDescriptor, request: Message) -> tuple[grpc.StatusCode, str]:
    path = f"/{method.containing_service.full_name}/{method.name}"
    make: Any = channel.unary_stream if method.server_streaming else channel.unary_unary
    answer = GetMessageClass(method.output_type).FromString
    call = make(path, request_serializer=type(request).SerializeToString, response_deserializer=answer)
    try:
        response = call(request, timeout=_SECONDS)
        if method.server_streaming:
            list(response)
    except grpc.RpcError as error:
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


def test_ten_thousand_random_requests_find_no_gap(rig: RbdRig, host: HostProcess, tmp_path: Path) -> None:
    directory = tmp_path / "staging"
    directory.mkdir()
    volume = rig.create("pvc-1")
    seen: set[tuple[str, str]] = set()
    with grpc.insecure_channel(host.endpoint) as channel:

        @settings(
            max_examples=_EXAMPLES,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(one=_strategy(rig, volume, directory))
        def send(one: tuple[MethodDescriptor, Message]) -> None:
            method, request = one
            code, message = _call(channel, method, request)
            seen.add((method.name, code.name))
            is_of_token = code is grpc.StatusCode.ABORTED and message.startswith("starting_token: ")
            assert code in _ALLOWED or is_of_token, (method.name, request, code, message)
            assert _SECRET not in message
            assert rig.secrets["userKey"] not in message
            assert "Traceback" not in message

        send()
    assert {("ControllerModifyVolume", "OK"), ("ControllerGetVolume", "OK"), ("ListVolumes", "OK")} <= seen
    assert {("ListSnapshots", "OK"), ("GetCapacity", "OK"), ("ListVolumes", "ABORTED")} <= seen
    assert not mounts_below(directory)
    # Had the requests all been refused at the door, they would have tested the door only.
    assert {("CreateVolume", "OK"), ("ValidateVolumeCapabilities", "OK"), ("ControllerExpandVolume", "OK")} <= seen
    assert {("DeleteVolume", "OK"), ("NodeStageVolume", "FAILED_PRECONDITION"), ("NodeUnstageVolume", "OK")} <= seen
    log = host.log()
    assert "Traceback" not in log
    for secret in (_SECRET, rig.secrets["userKey"]):
        assert secret not in log
