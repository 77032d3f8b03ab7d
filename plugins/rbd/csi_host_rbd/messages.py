"""What is seen of volumes and snapshots, as CSI's messages."""

from collections.abc import Mapping

from google.protobuf.timestamp_pb2 import Timestamp

from csi_host.proto import csi_pb2
from csi_host_rbd.conditions import Condition
from csi_host_rbd.group_snapshots import GroupSnapshot
from csi_host_rbd.listed_volumes import SeenVolume
from csi_host_rbd.snapshot import Snapshot
from csi_host_rbd.volume import Volume


def volume_message(volume: SeenVolume) -> csi_pb2.Volume:
    """Return a volume that was seen."""
    return csi_pb2.Volume(volume_id=volume.volume_id, capacity_bytes=volume.size_bytes)


def created_volume_message(volume: Volume, passed_on: Mapping[str, str]) -> csi_pb2.Volume:
    """Return a volume as CreateVolume has it; ``passed_on`` is what of its class nodes have to know."""
    # What is real comes last, so that it wins over what the class says.
    context = {
        **passed_on,
        "pool": volume.pool,
        "journalPool": volume.journal_pool,
        "imageName": volume.image_name,
    }
    if volume.namespace:
        context["radosNamespace"] = volume.namespace
    if volume.data_pool:
        context["dataPool"] = volume.data_pool
    message = csi_pb2.Volume(volume_id=str(volume.volume_id), capacity_bytes=volume.size_bytes, volume_context=context)
    if volume.topology:
        message.accessible_topology.add(segments=volume.topology)
    return message


def condition_message(condition: Condition) -> csi_pb2.VolumeCondition:
    """Return a volume's condition."""
    return csi_pb2.VolumeCondition(abnormal=condition.is_abnormal, message=condition.message)


def volume_entry(volume: SeenVolume) -> csi_pb2.ListVolumesResponse.Entry:
    """Return a volume as ListVolumes has it."""
    status = csi_pb2.ListVolumesResponse.VolumeStatus(volume_condition=condition_message(volume.condition))
    return csi_pb2.ListVolumesResponse.Entry(volume=volume_message(volume), status=status)


def snapshot_message(snapshot: Snapshot) -> csi_pb2.Snapshot:
    """Return a snapshot."""
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
