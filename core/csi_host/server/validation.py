"""What every request is checked for before a driver sees it: required fields, sizes and characters.

The tables follow the spec's REQUIRED fields and size limits; an error names the field by its path in the request.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from csi_host.errors import InvalidArgument
from csi_host.server import limits

# In the order in which they are asked for. The elements of "required" are fields or oneofs; a repeated field or a map
# needs one element at least. Booleans and numbers of which 0 is a value cannot be told from unset ones.
REQUIRED: Mapping[str, tuple[str, ...]] = {
    "CreateVolumeRequest": ("name", "volume_capabilities"),
    "DeleteVolumeRequest": ("volume_id",),
    "ControllerPublishVolumeRequest": ("volume_id", "node_id", "volume_capability"),
    "ControllerUnpublishVolumeRequest": ("volume_id",),
    "ValidateVolumeCapabilitiesRequest": ("volume_id", "volume_capabilities"),
    "ControllerExpandVolumeRequest": ("volume_id", "capacity_range"),
    "ControllerGetVolumeRequest": ("volume_id",),
    "ControllerModifyVolumeRequest": ("volume_id", "mutable_parameters"),
    "CreateSnapshotRequest": ("name", "source_volume_id"),
    "DeleteSnapshotRequest": ("snapshot_id",),
    "GetSnapshotRequest": ("snapshot_id",),
    "CreateVolumeGroupSnapshotRequest": ("name", "source_volume_ids"),
    # The spec requires snapshot_ids in these two as well, but csi-sanity deletes an unknown group without any and
    # expects OK, so that is the driver's to judge.
    "DeleteVolumeGroupSnapshotRequest": ("group_snapshot_id",),
    "GetVolumeGroupSnapshotRequest": ("group_snapshot_id",),
    "GetMetadataAllocatedRequest": ("snapshot_id",),
    "GetMetadataDeltaRequest": ("base_snapshot_id", "target_snapshot_id"),
    "NodeStageVolumeRequest": ("volume_id", "staging_target_path", "volume_capability"),
    "NodeUnstageVolumeRequest": ("volume_id", "staging_target_path"),
    "NodePublishVolumeRequest": ("volume_id", "target_path", "volume_capability"),
    "NodeUnpublishVolumeRequest": ("volume_id", "target_path"),
    "NodeGetVolumeStatsRequest": ("volume_id", "volume_path"),
    "NodeExpandVolumeRequest": ("volume_id", "volume_path"),
    "VolumeCapability": ("access_type", "access_mode"),
    "VolumeCapability.AccessMode": ("mode",),
    "VolumeContentSource": ("type",),
    "VolumeContentSource.SnapshotSource": ("snapshot_id",),
    "VolumeContentSource.VolumeSource": ("volume_id",),
}

# Whole messages that have a rule of their own.
CHECKS: Mapping[str, Callable[[Any, str], None]] = {
    "CapacityRange": limits.check_capacity_range,
    "VolumeCapability.MountVolume": limits.check_mount_flags,
}


def validate(request: Message) -> None:
    """Raise InvalidArgument (OutOfRange for an offset) for the first thing wrong with a request."""
    _check_required(request, "")
    _check_values(request, "")


def _check_required(message: Message, prefix: str) -> None:
    plan = _plan(cast("Descriptor", message.DESCRIPTOR))
    for name, is_set in plan.required:
        if not is_set(message, name):
            raise InvalidArgument(f"{prefix}{name}: required")
    for path, inner in _nested(message, plan, prefix):
        _check_required(inner, f"{path}.")


def _check_values(message: Message, prefix: str) -> None:
    plan = _plan(cast("Descriptor", message.DESCRIPTOR))
    for name, check in plan.checks:
        check(getattr(message, name), f"{prefix}{name}")
    if plan.whole is not None:
        plan.whole(message, prefix.removesuffix("."))
    for path, inner in _nested(message, plan, prefix):
        _check_values(inner, f"{path}.")


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What is checked of messages of one type: asking their descriptors at each call would take longer than that."""

    required: Sequence[tuple[str, Callable[[Message, str], bool]]]
    checks: Sequence[tuple[str, Callable[[Any, str], None]]]
    whole: Callable[[Any, str], None] | None
    nested: Sequence[tuple[str, bool]]


@cache
def _plan(descriptor: Descriptor) -> _Plan:
    name = descriptor.full_name.removeprefix("csi.v1.")
    fields = [(field, limits.check_for(field)) for field in descriptor.fields]
    return _Plan(
        required=[(each, _presence(descriptor, each)) for each in REQUIRED.get(name, ())],
        checks=[(field.name, check) for field, check in fields if check is not None],
        whole=CHECKS.get(name),
        nested=[(field.name, field.is_repeated) for field in descriptor.fields if _has_rules(field)],
    )


def _presence(descriptor: Descriptor, name: str) -> Callable[[Message, str], bool]:
    if name in descriptor.oneofs_by_name:
        return lambda message, oneof: message.WhichOneof(oneof) is not None
    if descriptor.fields_by_name[name].has_presence:
        # bool() of an unset submessage is True.
        return lambda message, field: message.HasField(field)
    return lambda message, field: bool(getattr(message, field))


def _has_rules(field: FieldDescriptor) -> bool:
    return (
        field.message_type is not None
        and not field.message_type.GetOptions().map_entry
        and field.message_type.file.package == "csi.v1"
    )


def _nested(message: Message, plan: _Plan, prefix: str) -> Iterator[tuple[str, Message]]:
    for name, is_repeated in plan.nested:
        if is_repeated:
            for index, inner in enumerate(getattr(message, name)):
                yield f"{prefix}{name}[{index}]", inner
        elif message.HasField(name):
            yield f"{prefix}{name}", getattr(message, name)
