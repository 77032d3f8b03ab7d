import re
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.message import Message

from csi_host.driver import Driver
from csi_host.errors import CsiError, InvalidArgument, OutOfRange
from csi_host.proto import csi_pb2
from csi_host.server.validation import REQUIRED, validate
from csi_host.services.controller import ControllerServer
from csi_host.services.node import NodeServer
from csi_host.testing.contexts import host_context
from csi_host.testing.server import Served, serving

CAPABILITY = csi_pb2.VolumeCapability(
    mount=csi_pb2.VolumeCapability.MountVolume(fs_type="ext4"),
    access_mode=csi_pb2.VolumeCapability.AccessMode(mode=csi_pb2.VolumeCapability.AccessMode.SINGLE_NODE_WRITER),
)
PATH = "/var/lib/kubelet/plugins/x"
# One request of each kind that has everything it needs.
COMPLETE: list[Message] = [
    csi_pb2.CreateVolumeRequest(name="pvc-1", volume_capabilities=[CAPABILITY]),
    csi_pb2.DeleteVolumeRequest(volume_id="v"),
    csi_pb2.ControllerPublishVolumeRequest(volume_id="v", node_id="n", volume_capability=CAPABILITY),
    csi_pb2.ControllerUnpublishVolumeRequest(volume_id="v"),
    csi_pb2.ValidateVolumeCapabilitiesRequest(volume_id="v", volume_capabilities=[CAPABILITY]),
    csi_pb2.ControllerExpandVolumeRequest(volume_id="v", capacity_range=csi_pb2.CapacityRange(required_bytes=1)),
    csi_pb2.ControllerGetVolumeRequest(volume_id="v"),
    csi_pb2.ControllerModifyVolumeRequest(volume_id="v", mutable_parameters={"iops": "1"}),
    csi_pb2.CreateSnapshotRequest(name="s", source_volume_id="v"),
    csi_pb2.DeleteSnapshotRequest(snapshot_id="s"),
    csi_pb2.GetSnapshotRequest(snapshot_id="s"),
    csi_pb2.CreateVolumeGroupSnapshotRequest(name="g", source_volume_ids=["v"]),
    csi_pb2.DeleteVolumeGroupSnapshotRequest(group_snapshot_id="g"),
    csi_pb2.GetVolumeGroupSnapshotRequest(group_snapshot_id="g"),
    csi_pb2.GetMetadataAllocatedRequest(snapshot_id="s"),
    csi_pb2.GetMetadataDeltaRequest(base_snapshot_id="s", target_snapshot_id="t"),
    csi_pb2.NodeStageVolumeRequest(volume_id="v", staging_target_path=PATH, volume_capability=CAPABILITY),
    csi_pb2.NodeUnstageVolumeRequest(volume_id="v", staging_target_path=PATH),
    csi_pb2.NodePublishVolumeRequest(volume_id="v", target_path=PATH, volume_capability=CAPABILITY),
    csi_pb2.NodeUnpublishVolumeRequest(volume_id="v", target_path=PATH),
    csi_pb2.NodeGetVolumeStatsRequest(volume_id="v", volume_path=PATH),
    csi_pb2.NodeExpandVolumeRequest(volume_id="v", volume_path=PATH),
]
WITHOUT_REQUIRED = [
    csi_pb2.GetPluginInfoRequest(),
    csi_pb2.GetPluginCapabilitiesRequest(),
    csi_pb2.ProbeRequest(),
    csi_pb2.ControllerGetCapabilitiesRequest(),
    csi_pb2.ListVolumesRequest(),
    csi_pb2.GetCapacityRequest(),
    csi_pb2.ListSnapshotsRequest(),
    csi_pb2.GroupControllerGetCapabilitiesRequest(),
    csi_pb2.NodeGetCapabilitiesRequest(),
    csi_pb2.NodeGetInfoRequest(),
]


def copied(message: Message) -> Message:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def named(message: Message) -> str:
    return message.DESCRIPTOR.name


def label(value: object) -> str | None:
    return named(value) if isinstance(value, Message) else None


def refused(request: Message) -> CsiError:
    with pytest.raises(CsiError) as caught:
        validate(request)
    return caught.value


def required_fields() -> Iterator[tuple[Message, str]]:
    for request in COMPLETE:
        for name in REQUIRED[named(request)]:
            yield request, name


def test_every_request_of_the_spec_is_accounted_for() -> None:
    requests = {method.input_type.name for s in csi_pb2.DESCRIPTOR.services_by_name.values() for method in s.methods}
    assert requests == {named(request) for request in [*COMPLETE, *WITHOUT_REQUIRED]}
    assert requests >= {name for name in REQUIRED if name.endswith("Request")}


@pytest.mark.parametrize("request_", [*COMPLETE, *WITHOUT_REQUIRED], ids=named)
def test_a_complete_request_is_accepted(request_: Message) -> None:
    validate(request_)


@pytest.mark.parametrize(("request_", "name"), list(required_fields()), ids=label)
def test_a_request_without_a_required_field_is_refused_naming_it(request_: Message, name: str) -> None:
    incomplete = copied(request_)
    incomplete.ClearField(name)
    error = refused(incomplete)
    assert isinstance(error, InvalidArgument)
    assert str(error) == f"{name}: required"


@pytest.mark.parametrize(
    ("capability", "path"),
    [
        (csi_pb2.VolumeCapability(), "access_type"),
        (csi_pb2.VolumeCapability(access_mode=CAPABILITY.access_mode), "access_type"),
        (csi_pb2.VolumeCapability(block=csi_pb2.VolumeCapability.BlockVolume()), "access_mode"),
        (
            csi_pb2.VolumeCapability(
                block=csi_pb2.VolumeCapability.BlockVolume(), access_mode=csi_pb2.VolumeCapability.AccessMode()
            ),
            "access_mode.mode",
        ),
    ],
)
def test_half_a_volume_capability_is_refused_wherever_it_stands(
    capability: csi_pb2.VolumeCapability, path: str
) -> None:
    create = csi_pb2.CreateVolumeRequest(name="pvc-1", volume_capabilities=[CAPABILITY, capability])
    assert str(refused(create)) == f"volume_capabilities[1].{path}: required"
    expand = csi_pb2.NodeExpandVolumeRequest(volume_id="v", volume_path=PATH, volume_capability=capability)
    assert str(refused(expand)) == f"volume_capability.{path}: required"


def test_an_access_mode_of_a_later_spec_is_refused() -> None:
    create = csi_pb2.CreateVolumeRequest(name="pvc-1", volume_capabilities=[CAPABILITY])
    create.volume_capabilities[0].access_mode.mode = 99  # type: ignore[assignment] # proto3 enums are open
    assert str(refused(create)) == "volume_capabilities[0].access_mode.mode: expected a value of CSI 1.12, got 99"


@pytest.mark.parametrize(
    ("source", "path"),
    [
        (csi_pb2.VolumeContentSource(), "type"),
        (csi_pb2.VolumeContentSource(snapshot=csi_pb2.VolumeContentSource.SnapshotSource()), "snapshot.snapshot_id"),
        (csi_pb2.VolumeContentSource(volume=csi_pb2.VolumeContentSource.VolumeSource()), "volume.volume_id"),
    ],
)
def test_a_content_source_names_what_it_is(source: csi_pb2.VolumeContentSource, path: str) -> None:
    create = csi_pb2.CreateVolumeRequest(name="pvc-1", volume_capabilities=[CAPABILITY], volume_content_source=source)
    assert str(refused(create)) == f"volume_content_source.{path}: required"


@pytest.mark.parametrize(("required", "limit"), [(-1, 0), (0, -1), (2, 1)])
@pytest.mark.parametrize(
    "request_",
    [request for request in COMPLETE if "capacity_range" in request.DESCRIPTOR.fields_by_name],
    ids=named,
)
def test_a_capacity_range_that_no_size_satisfies_is_refused(request_: Message, required: int, limit: int) -> None:
    request = copied(request_)
    request.MergeFrom(type(request)(capacity_range=csi_pb2.CapacityRange(required_bytes=required, limit_bytes=limit)))
    if limit == 1:
        assert "limit_bytes" in str(refused(request))
    assert isinstance(refused(request), InvalidArgument)
    assert str(refused(request)).startswith("capacity_range.")


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (csi_pb2.ListVolumesRequest(max_entries=-1), "max_entries"),
        (csi_pb2.ListSnapshotsRequest(max_entries=-1), "max_entries"),
        (csi_pb2.GetMetadataAllocatedRequest(snapshot_id="s", max_results=-1), "max_results"),
        (csi_pb2.GetMetadataDeltaRequest(base_snapshot_id="s", target_snapshot_id="t", max_results=-1), "max_results"),
    ],
)
def test_a_negative_count_is_refused(request_: Message, field: str) -> None:
    error = refused(request_)
    assert isinstance(error, InvalidArgument)
    assert str(error) == f"{field}: expected 0 or more, got -1"


@pytest.mark.parametrize(
    "request_",
    [
        csi_pb2.GetMetadataAllocatedRequest(snapshot_id="s", starting_offset=-1),
        csi_pb2.GetMetadataDeltaRequest(base_snapshot_id="s", target_snapshot_id="t", starting_offset=-1),
    ],
)
def test_a_negative_offset_is_out_of_range(request_: Message) -> None:
    assert isinstance(refused(request_), OutOfRange)


def string_fields() -> Iterator[tuple[Message, str, int]]:
    for request in [*COMPLETE, *WITHOUT_REQUIRED]:
        for field in request.DESCRIPTOR.fields:
            if field.type == field.TYPE_STRING:
                paths = ("staging_target_path", "target_path", "volume_path")
                longer = {"node_id": 256, "volume_id": 512}
                limit = 4095 if field.name in paths else longer.get(field.name, 128)
                yield request, field.name, limit


def with_text(request: Message, name: str, text: str) -> Message:
    changed = copied(request)
    if changed.DESCRIPTOR.fields_by_name[name].is_repeated:
        changed.ClearField(name)
        getattr(changed, name).append(text)
    else:
        setattr(changed, name, text)
    return changed


@pytest.mark.parametrize(("request_", "name", "limit"), list(string_fields()), ids=label)
def test_a_text_has_at_most_as_many_bytes_as_the_spec_allows(request_: Message, name: str, limit: int) -> None:
    longest = "/a" * (limit // 2) + "b" * (limit % 2)
    validate(with_text(request_, name, longest))
    error = refused(with_text(request_, name, longest + "c"))
    assert isinstance(error, InvalidArgument)
    assert re.fullmatch(rf"{name}(\[0\])?: expected at most {limit} bytes, got {limit + 1}", str(error))


@pytest.mark.parametrize(("request_", "name", "limit"), list(string_fields()), ids=label)
@pytest.mark.parametrize("character", ["\0", "\x07", "\x1b", "\x7f", "\x85"])
def test_a_text_has_no_control_characters(request_: Message, name: str, limit: int, character: str) -> None:
    del limit
    error = refused(with_text(request_, name, f"/a{character}b"))
    assert isinstance(error, InvalidArgument)
    assert f"U+{ord(character):04X}" in str(error)
    assert character not in str(error)


def test_lengths_are_counted_in_bytes_not_characters() -> None:
    validate(csi_pb2.DeleteVolumeRequest(volume_id="ü" * 64))
    assert "got 130" in str(refused(csi_pb2.DeleteSnapshotRequest(snapshot_id="ü" * 65)))


def test_a_names_white_space_is_its_own_affair() -> None:
    validate(csi_pb2.CreateVolumeRequest(name="a b\tc", volume_capabilities=[CAPABILITY]))


@pytest.mark.parametrize("name", ["secrets", "volume_context", "publish_context"])
def test_a_map_has_at_most_four_kibibytes_of_keys_and_values(name: str) -> None:
    request = copied(next(request for request in COMPLETE if named(request) == "NodeStageVolumeRequest"))
    getattr(request, name).update({"k": "v" * 4095})
    validate(request)
    getattr(request, name)["l"] = ""
    assert str(refused(request)) == f"{name}: expected at most 4096 bytes in all, got 4097"


def test_maps_inside_of_messages_are_limited_too() -> None:
    request = csi_pb2.GetCapacityRequest(accessible_topology=csi_pb2.Topology(segments={"zone": "z" * 4096}))
    assert str(refused(request)).startswith("accessible_topology.segments: expected at most 4096 bytes")


def test_service_account_tokens_do_not_count_as_they_are_kubelets() -> None:
    validate(
        csi_pb2.NodePublishVolumeRequest(
            volume_id="v",
            target_path=PATH,
            volume_capability=CAPABILITY,
            volume_context={"csi.storage.k8s.io/serviceAccount.tokens": "t" * 9000, "pool": "p"},
        )
    )


def test_a_map_has_no_nul_characters_which_no_program_could_be_given() -> None:
    create = csi_pb2.CreateVolumeRequest(name="pvc-1", volume_capabilities=[CAPABILITY], parameters={"pool": "a\0b"})
    assert str(refused(create)) == "parameters: expected keys and values without NUL characters"


def test_mount_flags_are_limited_together_and_not_one_by_one() -> None:
    create = csi_pb2.CreateVolumeRequest(name="pvc-1", volume_capabilities=[CAPABILITY])
    flags = create.volume_capabilities[0].mount.mount_flags
    flags.append('context="system_u:object_r:container_file_t:s0:c1,c2"' + "x" * 1000)
    validate(create)
    flags.append("y" * 4000)
    assert str(refused(create)).startswith("volume_capabilities[0].mount.mount_flags: expected at most 4096 bytes")


@pytest.mark.parametrize(
    ("request_", "name"),
    [
        (request, name)
        for request in COMPLETE
        for name in ("staging_target_path", "target_path")
        if name in request.DESCRIPTOR.fields_by_name
        and named(request) not in {"NodeGetVolumeStatsRequest", "NodeExpandVolumeRequest"}
    ],
)
def test_stage_and_publish_want_absolute_paths(request_: Message, name: str) -> None:
    error = refused(with_text(request_, name, "some/path"))
    assert str(error) == f"{name}: expected an absolute path, got 'some/path'"


def test_a_component_of_a_path_is_no_longer_than_a_file_name() -> None:
    unstage = csi_pb2.NodeUnstageVolumeRequest(volume_id="v", staging_target_path="/a/" + "b" * 255)
    validate(unstage)
    unstage.staging_target_path += "b"
    assert str(refused(unstage)) == "staging_target_path: expected at most 255 bytes between two slashes"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    context = host_context(tmp_path)
    with serving(Driver(controller=ControllerServer(context), node=NodeServer(context))) as served:
        yield served


def test_validation_comes_before_everything_the_driver_does(served: Served) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        served.controller.CreateVolume(csi_pb2.CreateVolumeRequest())
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "name: required"


@pytest.mark.parametrize("path", ["some/path", "/nonexistent"])
def test_stats_of_an_unknown_path_are_not_found_even_when_it_is_relative(served: Served, path: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        served.node.NodeGetVolumeStats(csi_pb2.NodeGetVolumeStatsRequest(volume_id="v", volume_path=path))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
