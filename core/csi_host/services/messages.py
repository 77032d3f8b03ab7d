"""From CSI's messages to domain values and back."""

from csi_host.access import AccessMode, VolumeAccess
from csi_host.capacity import CapacityRange
from csi_host.errors import InvalidArgument
from csi_host.node.stats import Usage, VolumeStats
from csi_host.proto import csi_pb2


def access_of(capability: csi_pb2.VolumeCapability) -> VolumeAccess:
    """Return how a volume is to be used; raises InvalidArgument when the type is missing or the mode unknown."""
    if capability.WhichOneof("access_type") is None:
        raise InvalidArgument("volume_capability.access_type: required (block or mount)")
    try:
        mode = AccessMode(capability.access_mode.mode)
    except ValueError:
        raise InvalidArgument(
            f"volume_capability.access_mode.mode: expected one of CSI 1.12's, got {capability.access_mode.mode}"
        ) from None
    return VolumeAccess(
        mode=mode,
        is_block=capability.HasField("block"),
        fs_type=capability.mount.fs_type,
        mount_flags=tuple(capability.mount.mount_flags),
        volume_mount_group=capability.mount.volume_mount_group,
    )


def capacity_range_of(
    request: csi_pb2.CreateVolumeRequest | csi_pb2.ControllerExpandVolumeRequest | csi_pb2.NodeExpandVolumeRequest,
) -> CapacityRange | None:
    """Return the asked size, None when the field is unset; raises InvalidArgument when no size can satisfy it."""
    if not request.HasField("capacity_range"):
        return None
    return CapacityRange(
        required_bytes=request.capacity_range.required_bytes, limit_bytes=request.capacity_range.limit_bytes
    )


def stats_response(stats: VolumeStats) -> csi_pb2.NodeGetVolumeStatsResponse:
    """Return the answer to NodeGetVolumeStats."""
    units = ((csi_pb2.VolumeUsage.BYTES, stats.bytes), (csi_pb2.VolumeUsage.INODES, stats.inodes))
    return csi_pb2.NodeGetVolumeStatsResponse(
        usage=[_usage(unit, usage) for unit, usage in units if usage is not None],
        volume_condition=csi_pb2.VolumeCondition(abnormal=stats.abnormal, message=stats.message),
    )


def _usage(unit: csi_pb2.VolumeUsage.Unit.ValueType, usage: Usage) -> csi_pb2.VolumeUsage:
    return csi_pb2.VolumeUsage(unit=unit, total=usage.total, used=usage.used, available=usage.available)
