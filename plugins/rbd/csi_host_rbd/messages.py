"""What is seen of volumes and snapshots, as CSI's messages."""

from google.protobuf.timestamp_pb2 import Timestamp

from csi_host.proto import csi_pb2
from csi_host_rbd.conditions import Condition
from csi_host_rbd.group_snapshots import GroupSnapshot
from csi_host_rbd.listed_snapshots import SeenSnapshot
from csi_host_rbd.listed_volumes import SeenVolume


def volume_message(volume: SeenVolume) -> csi_pb2.Volume:
    """Return a volume that was seen."""
    return csi_pb2.Volume(volume_id=volume.volume_id, capacity_bytes=volume.size_bytes)


def condition_message(condition: Condition) -> csi_pb2.VolumeCondition:
    """Return a volume's condition."""
    return csi_pb2.VolumeCondition(abnormal=condition.is_abnormal, message=condition.message)


def volume_entry(volume: SeenVolume) -> csi_pb2.ListVolumesResponse.Entry:
    """Return a volume as ListVolumes has it."""
    status = csi_pb2.ListVolumesResponse.VolumeStatus(volume_condition=condition_message(volume.condition))
    return csi_pb2.ListVolumesResponse.Entry(volume=volume_message(volume), status=status)


def snapshot_message(snapshot: SeenSnapshot) -> csi_pb2.Snapshot:
    """Return a snapshot that was seen."""
    created_at = Timestamp()
    created_at.FromDatetime(snapshot.created_at)
    return csi_pb2.Snapshot(
        snapshot_id=snapshot.snapshot_id,
        source_volume_id=snapshot.source_volume_id,
        size_bytes=snapshot.size_bytes,
        creation_time=created_at,
        ready_to_use=snapshot.is_ready,
        group_snapshot_id=snapshot.group_id,
    )


def group_snapshot_message(group: GroupSnapshot) -> csi_pb2.VolumeGroupSnapshot:
    """Return a group snapshot with its snapshots."""
    created_at = Timestamp()
    created_at.FromDatetime(group.created_at)
    return csi_pb2.VolumeGroupSnapshot(
        group_snapshot_id=group.group_id,
        snapshots=map(snapshot_message, group.snapshots),
        creation_time=created_at,
        ready_to_use=group.is_ready,
    )
