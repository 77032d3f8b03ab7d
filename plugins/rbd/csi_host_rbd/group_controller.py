"""The GroupController service: from CSI's messages to group snapshots and back."""

import grpc

from csi_host.driver import HostContext
from csi_host.proto import csi_pb2
from csi_host.services.group_controller import GroupControllerServer
from csi_host_rbd.group_making import WantedGroupSnapshot
from csi_host_rbd.group_parameters import parse_group_parameters
from csi_host_rbd.group_snapshots import GroupSnapshots
from csi_host_rbd.messages import group_snapshot_message


class RbdGroupControllerServer(GroupControllerServer):
    """Snapshots of several volumes at one point in time."""

    def __init__(self, context: HostContext, *, group_snapshots: GroupSnapshots) -> None:
        super().__init__(context)
        self._groups = group_snapshots

    def CreateVolumeGroupSnapshot(
        self,
        request: csi_pb2.CreateVolumeGroupSnapshotRequest,
        context: grpc.ServicerContext,  # noqa: ARG002 - the RPC's signature
    ) -> csi_pb2.CreateVolumeGroupSnapshotResponse:
        """Take a snapshot of all volumes, or return the one of that name."""
        wanted = WantedGroupSnapshot(
            name=request.name,
            volume_ids=list(request.source_volume_ids),
            parameters=parse_group_parameters(request.parameters),
        )
        made = self._groups.create(wanted, request.secrets)
        return csi_pb2.CreateVolumeGroupSnapshotResponse(group_snapshot=group_snapshot_message(made))

    def DeleteVolumeGroupSnapshot(
        self,
        request: csi_pb2.DeleteVolumeGroupSnapshotRequest,
        context: grpc.ServicerContext,  # noqa: ARG002 - the RPC's signature
    ) -> csi_pb2.DeleteVolumeGroupSnapshotResponse:
        """Delete a group snapshot with its snapshots; OK when there is none."""
        self._groups.delete(request.group_snapshot_id, request.snapshot_ids, request.secrets)
        return csi_pb2.DeleteVolumeGroupSnapshotResponse()

    def GetVolumeGroupSnapshot(
        self,
        request: csi_pb2.GetVolumeGroupSnapshotRequest,
        context: grpc.ServicerContext,  # noqa: ARG002 - the RPC's signature
    ) -> csi_pb2.GetVolumeGroupSnapshotResponse:
        """Tell a group snapshot's age and snapshots."""
        found = self._groups.get(request.group_snapshot_id, request.snapshot_ids, request.secrets)
        return csi_pb2.GetVolumeGroupSnapshotResponse(group_snapshot=group_snapshot_message(found))
