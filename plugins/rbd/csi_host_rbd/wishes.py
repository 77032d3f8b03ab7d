"""What CreateVolume and CreateSnapshot ask for, read out of CSI's messages and checked."""

from collections.abc import Sequence

from csi_host.access import VolumeAccess
from csi_host.capacity import CapacityRange
from csi_host.errors import InvalidArgument
from csi_host.proto import csi_pb2
from csi_host.services.messages import access_of, capacity_range_of
from csi_host_rbd.content_source import SnapshotSource, Source, VolumeSource
from csi_host_rbd.modification import parse_modification
from csi_host_rbd.parameters import parse_parameters
from csi_host_rbd.sizes import image_size
from csi_host_rbd.snapshot_parameters import parse_snapshot_parameters
from csi_host_rbd.snapshots import WantedSnapshot
from csi_host_rbd.topology import TopologyRequirement
from csi_host_rbd.uses import check_use
from csi_host_rbd.volume import WantedVolume


def wanted_volume(request: csi_pb2.CreateVolumeRequest, *, default_mounter: str) -> WantedVolume:
    """Return the volume that is asked for; raises InvalidArgument naming what cannot be had."""
    parameters = parse_parameters(request.parameters)
    source = _source_of(request)
    check_uses([access_of(capability) for capability in request.volume_capabilities])
    modification = parse_modification(request.mutable_parameters)
    modification.changes({})
    modification.check_mounter(request.parameters.get("mounter") or default_mounter)
    capacity = capacity_range_of(request)
    return WantedVolume(
        name=request.name,
        size_bytes=image_size(capacity),
        capacity=capacity or CapacityRange(),
        parameters=parameters,
        modification=modification,
        source=source,
        requirement=_requirement_of(request),
    )


def wanted_snapshot(request: csi_pb2.CreateSnapshotRequest) -> WantedSnapshot:
    """Return the snapshot that is asked for; raises InvalidArgument naming the parameter."""
    return WantedSnapshot(
        name=request.name,
        volume_id=request.source_volume_id,
        parameters=parse_snapshot_parameters(request.parameters),
    )


def check_uses(uses: Sequence[VolumeAccess]) -> None:
    """Raise InvalidArgument naming the first use that an RBD image cannot serve."""
    for index, use in enumerate(uses):
        check_use(use, f"volume_capabilities[{index}]")


def _source_of(request: csi_pb2.CreateVolumeRequest) -> Source:
    match request.volume_content_source.WhichOneof("type"):
        case "snapshot":
            return SnapshotSource(snapshot_id=request.volume_content_source.snapshot.snapshot_id)
        case "volume":
            return VolumeSource(volume_id=request.volume_content_source.volume.volume_id)
    if request.HasField("volume_content_source"):
        raise InvalidArgument("volume_content_source.type: expected a snapshot or a volume")
    for index, capability in enumerate(request.volume_capabilities):
        if access_of(capability).mode.is_reader_only:
            raise InvalidArgument(
                f"volume_capabilities[{index}].access_mode: a volume that nobody may write needs a "
                "volume_content_source to have something to read"
            )
    return None


def _requirement_of(request: csi_pb2.CreateVolumeRequest) -> TopologyRequirement | None:
    if not request.HasField("accessibility_requirements"):
        return None
    requirements = request.accessibility_requirements
    return TopologyRequirement(
        preferred=[dict(topology.segments) for topology in requirements.preferred],
        requisite=[dict(topology.segments) for topology in requirements.requisite],
    )
