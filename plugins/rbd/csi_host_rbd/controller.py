"""The Controller service: from CSI's messages to volumes and back."""

from dataclasses import dataclass
from typing import ClassVar

import grpc
from google.protobuf.wrappers_pb2 import Int64Value

from csi_host.capacity import CapacityRange
from csi_host.driver import HostContext
from csi_host.errors import InvalidArgument
from csi_host.proto import csi_pb2
from csi_host.services.controller import ControllerServer
from csi_host.services.messages import access_of, capacity_range_of
from csi_host_rbd.listed_snapshots import SeenSnapshots
from csi_host_rbd.listed_volumes import SeenVolumes
from csi_host_rbd.messages import (
    condition_message,
    created_volume_message,
    snapshot_message,
    volume_entry,
    volume_message,
)
from csi_host_rbd.modification import parse_modification
from csi_host_rbd.modifying import VolumeModifier
from csi_host_rbd.parameters import parse_parameters
from csi_host_rbd.pool_capacity import MINIMUM_SIZE_BYTES, Capacities, targets_of
from csi_host_rbd.snapshots import Snapshots
from csi_host_rbd.volumes import Volumes
from csi_host_rbd.wishes import check_uses, wanted_snapshot, wanted_volume

# What the sidecars call without a secret, or without one where the class names none. Promised without a user of our
# own, these would be calls that can only fail, over and over.
_WITHOUT_SECRETS = frozenset({"LIST_VOLUMES", "LIST_SNAPSHOTS", "GET_CAPACITY", "GET_VOLUME", "VOLUME_CONDITION"})


@dataclass(frozen=True, kw_only=True)
class Sights:
    """What only looks at the clusters."""

    volumes: SeenVolumes
    snapshots: SeenSnapshots
    capacities: Capacities


class RbdControllerServer(ControllerServer):
    """Volumes on RBD images."""

    # Watchers have addresses and not the CO's node ids, so published nodes are not among the features.
    features: ClassVar[frozenset[str]] = frozenset({"CLONE_VOLUME", "SINGLE_NODE_MULTI_WRITER", "VOLUME_CONDITION"})
    # The node opens the image itself, so a CO that published before every pod would ask for nothing (so in ceph-csi).
    # GET_SNAPSHOT is alpha, and what checks drivers does not know it yet: csi-sanity 5.4 fails whoever advertises it.
    unadvertised: ClassVar[frozenset[str]] = frozenset({"PUBLISH_UNPUBLISH_VOLUME", "GET_SNAPSHOT"})

    def __init__(
        self,
        context: HostContext,
        *,
        volumes: Volumes,
        snapshots: Snapshots,
        sights: Sights,
        modifier: VolumeModifier,
        default_mounter: str,
        has_secret: bool,
    ) -> None:
        super().__init__(context, withheld=frozenset() if has_secret else _WITHOUT_SECRETS)
        self._volumes = volumes
        self._snapshots = snapshots
        self._seen = sights
        self._modifier = modifier
        self._default_mounter = default_mounter

    def CreateVolume(
        self,
        request: csi_pb2.CreateVolumeRequest,
        context: grpc.ServicerContext,  # noqa: ARG002 - the RPC's signature
    ) -> csi_pb2.CreateVolumeResponse:
        """Make a volume from nothing, a snapshot or a volume, or return the one of that name."""
        wanted = wanted_volume(request, default_mounter=self._default_mounter)
        volume = created_volume_message(self._volumes.create(wanted, request.secrets), wanted.parameters.passed_on)
        if wanted.source is not None:
            volume.content_source.CopyFrom(request.volume_content_source)
        return csi_pb2.CreateVolumeResponse(volume=volume)

    def DeleteVolume(
        self,
        request: csi_pb2.DeleteVolumeRequest,
        context: grpc.ServicerContext,  # noqa: ARG002 - the RPC's signature
    ) -> csi_pb2.DeleteVolumeResponse:
        """Delete a volume; OK when there is none, and for a handle that no volume of ours can have."""
        self._volumes.delete(request.volume_id, request.secrets)
        return csi_pb2.DeleteVolumeResponse()

    def ValidateVolumeCapabilities(
        self,
        request: csi_pb2.ValidateVolumeCapabilitiesRequest,
        context: grpc.ServicerContext,  # noqa: ARG002 - the RPC's signature
    ) -> csi_pb2.ValidateVolumeCapabilitiesResponse:
        """Confirm what an existing volume can be used for, or say what it cannot."""
        self._volumes.find(request.volume_id, request.secrets)
        try:
            check_uses([access_of(capability) for capability in request.volume_capabilities])
            if request.parameters:
                parse_parameters(request.parameters)
            parse_modification(request.mutable_parameters).changes({})
        except InvalidArgument as reason:
            return csi_pb2.ValidateVolumeCapabilitiesResponse(message=str(reason))
        return csi_pb2.ValidateVolumeCapabilitiesResponse(
            confirmed=csi_pb2.ValidateVolumeCapabilitiesResponse.Confirmed(
                volume_context=request.volume_context,
                volume_capabilities=request.volume_capabilities,
                parameters=request.parameters,
                mutable_parameters=request.mutable_parameters,
            )
        )

    def ControllerExpandVolume(
        self,
        request: csi_pb2.ControllerExpandVolumeRequest,
        context: grpc.ServicerContext,  # noqa: ARG002 - the RPC's signature
    ) -> csi_pb2.ControllerExpandVolumeResponse:
        """Grow the image to what is asked; never shrinks.

        The node always has a part in it, block volumes included: which mounter a node uses is not known here, and a
        loop device has to be told of its new size.
        """
        capacity = capacity_range_of(request) or CapacityRange()
        volume = self._volumes.expand(request.volume_id, capacity, request.secrets)
        return csi_pb2.ControllerExpandVolumeResponse(capacity_bytes=volume.size_bytes, node_expansion_required=True)

    def ControllerPublishVolume(
        self,
        request: csi_pb2.ControllerPublishVolumeRequest,
        context: grpc.ServicerContext,  # noqa: ARG002 - the RPC's signature
    ) -> csi_pb2.ControllerPublishVolumeResponse:
        """See that the volume is there and can be used so; there is nothing to attach from here, as in ceph-csi."""
        check_uses([access_of(request.volume_capability)])
        self._seen.volumes.expect(request.volume_id, request.secrets)
        return csi_pb2.ControllerPublishVolumeResponse()

    def ControllerUnpublishVolume(
        self,
        request: csi_pb2.ControllerUnpublishVolumeRequest,  # noqa: ARG002 - the call is checked before it gets here
        context: grpc.ServicerContext,  # noqa: ARG002 - the RPC's signature
    ) -> csi_pb2.ControllerUnpublishVolumeResponse:
        """Nothing was attached, so nothing is to be detached; OK for a volume that is gone as well."""
        return csi_pb2.ControllerUnpublishVolumeResponse()

    def ControllerModifyVolume(
        self,
        request: csi_pb2.ControllerModifyVolumeRequest,
        context: grpc.ServicerContext,  # noqa: ARG002 - the RPC's signature
    ) -> csi_pb2.ControllerModifyVolumeResponse:
        """Set or remove limits and notes of a volume that may be in use (modification.py has the parameters)."""
        modification = parse_modification(request.mutable_parameters)
        self._modifier.modify(request.volume_id, modification, request.secrets)
        return csi_pb2.ControllerModifyVolumeResponse()

    def ControllerGetVolume(
        self,
        request: csi_pb2.ControllerGetVolumeRequest,
        context: grpc.ServicerContext,  # noqa: ARG002 - the RPC's signature
    ) -> csi_pb2.ControllerGetVolumeResponse:
        """Tell a volume's size and condition."""
        seen = self._seen.volumes.get(request.volume_id)
        status = csi_pb2.ControllerGetVolumeResponse.VolumeStatus(volume_condition=condition_message(seen.condition))
        return csi_pb2.ControllerGetVolumeResponse(volume=volume_message(seen), status=status)

    def ListVolumes(
        self,
        request: csi_pb2.ListVolumesRequest,
        context: grpc.ServicerContext,  # noqa: ARG002 - the RPC's signature
    ) -> csi_pb2.ListVolumesResponse:
        """List the volumes of all clusters, a page at a time."""
        page = self._seen.volumes.page(starting_token=request.starting_token, max_entries=request.max_entries)
        return csi_pb2.ListVolumesResponse(entries=map(volume_entry, page.entries), next_token=page.next_token)

    def ListSnapshots(
        self,
        request: csi_pb2.ListSnapshotsRequest,
        context: grpc.ServicerContext,  # noqa: ARG002 - the RPC's signature
    ) -> csi_pb2.ListSnapshotsResponse:
        """List the snapshots of all clusters a page at a time, or those of one id or source."""
        if request.snapshot_id:
            page = self._seen.snapshots.find(request.snapshot_id, request.source_volume_id, request.secrets)
        else:
            page = self._seen.snapshots.page(
                starting_token=request.starting_token,
                max_entries=request.max_entries,
                source_volume_id=request.source_volume_id,
                secrets=request.secrets,
            )
        entries = [csi_pb2.ListSnapshotsResponse.Entry(snapshot=snapshot_message(one)) for one in page.entries]
        return csi_pb2.ListSnapshotsResponse(entries=entries, next_token=page.next_token)

    def GetSnapshot(
        self,
        request: csi_pb2.GetSnapshotRequest,
        context: grpc.ServicerContext,  # noqa: ARG002 - the RPC's signature
    ) -> csi_pb2.GetSnapshotResponse:
        """Tell a snapshot's source, size and age."""
        seen = self._seen.snapshots.get(request.snapshot_id, request.secrets)
        return csi_pb2.GetSnapshotResponse(snapshot=snapshot_message(seen))

    def GetCapacity(
        self,
        request: csi_pb2.GetCapacityRequest,
        context: grpc.ServicerContext,  # noqa: ARG002 - the RPC's signature
    ) -> csi_pb2.GetCapacityResponse:
        """Tell how much a StorageClass's pool can still take, or all pools together."""
        uses = [access_of(capability) for capability in request.volume_capabilities]
        if request.parameters:
            segments = request.accessible_topology.segments if request.HasField("accessible_topology") else None
            available = self._seen.capacities.available_bytes(targets_of(request.parameters, segments), uses)
        else:
            available = self._seen.capacities.available_anywhere_bytes(uses)
        return csi_pb2.GetCapacityResponse(
            available_capacity=available, minimum_volume_size=Int64Value(value=MINIMUM_SIZE_BYTES)
        )

    def CreateSnapshot(
        self,
        request: csi_pb2.CreateSnapshotRequest,
        context: grpc.ServicerContext,  # noqa: ARG002 - the RPC's signature
    ) -> csi_pb2.CreateSnapshotResponse:
        """Take a snapshot of a volume, or return the one of that name."""
        snapshot = self._snapshots.create(wanted_snapshot(request), request.secrets)
        return csi_pb2.CreateSnapshotResponse(snapshot=snapshot_message(snapshot))

    def DeleteSnapshot(
        self,
        request: csi_pb2.DeleteSnapshotRequest,
        context: grpc.ServicerContext,  # noqa: ARG002 - the RPC's signature
    ) -> csi_pb2.DeleteSnapshotResponse:
        """Delete a snapshot; OK when there is none, and for a handle that no snapshot of ours can have."""
        self._snapshots.delete(request.snapshot_id, request.secrets)
        return csi_pb2.DeleteSnapshotResponse()
