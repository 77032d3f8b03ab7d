"""Volumes made, copied, grown, listed and deleted."""
# ruff: noqa: ARG002 - an RPC's method has gRPC's context whether it needs it or not

import re
from collections.abc import Sequence
from typing import ClassVar

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from csi_host.access import AccessMode, VolumeAccess
from csi_host.capacity import MIB, CapacityRange, round_up
from csi_host.driver import HostContext
from csi_host.errors import Aborted, AlreadyExists, InvalidArgument, NotFound
from csi_host.proto import csi_pb2
from csi_host.services.controller import ControllerServer
from csi_host.services.messages import access_of, capacity_range_of
from csi_host_memory.files import File, Files
from csi_host_memory.plugin import FILESYSTEMS

DEFAULT_BYTES = 512 * MIB
MODES = (AccessMode.SINGLE_NODE_WRITER, AccessMode.SINGLE_NODE_READER_ONLY)


class MemoryController(ControllerServer):
    """The Controller service. What it can do is advertised by the methods it has, and by ``features``."""

    features: ClassVar[frozenset[str]] = frozenset({"CLONE_VOLUME"})

    def __init__(self, context: HostContext, *, volumes: Files, snapshots: Files) -> None:
        super().__init__(context)
        self._volumes = volumes
        self._snapshots = snapshots

    def CreateVolume(
        self, request: csi_pb2.CreateVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.CreateVolumeResponse:
        """Make a volume, or find the one that an earlier call made."""
        for capability in request.volume_capabilities:
            check_access(access_of(capability))
        wanted = capacity_range_of(request) or CapacityRange()
        identifier = self._volumes.identifier(request.name)
        source_id = _source_id(request.volume_content_source)
        # One call at a time for this name, and nobody removes the source meanwhile; everybody else gets ABORTED.
        with self.context.volume_locks.hold(identifier, source_id or identifier):
            volume = self._volumes.find(identifier)
            if volume is None:
                source = self._source(request.volume_content_source)
                self._volumes.create(identifier, _size(wanted, source), source)
                volume = self._found(identifier)
            _check_fits(volume, wanted, source_id)
            return csi_pb2.CreateVolumeResponse(volume=_volume(volume))

    def DeleteVolume(
        self, request: csi_pb2.DeleteVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.DeleteVolumeResponse:
        """Remove a volume; OK when there is none."""
        with self.context.volume_locks.hold(request.volume_id):
            if volume := self._volumes.find(request.volume_id):
                self._volumes.remove(volume)
        return csi_pb2.DeleteVolumeResponse()

    def ValidateVolumeCapabilities(
        self, request: csi_pb2.ValidateVolumeCapabilitiesRequest, context: grpc.ServicerContext
    ) -> csi_pb2.ValidateVolumeCapabilitiesResponse:
        """Confirm what CreateVolume would accept."""
        self._found(request.volume_id)
        try:
            for capability in request.volume_capabilities:
                check_access(access_of(capability))
        except InvalidArgument as error:
            return csi_pb2.ValidateVolumeCapabilitiesResponse(message=str(error))
        confirmed = csi_pb2.ValidateVolumeCapabilitiesResponse.Confirmed(
            volume_context=request.volume_context,
            volume_capabilities=request.volume_capabilities,
            parameters=request.parameters,
        )
        return csi_pb2.ValidateVolumeCapabilitiesResponse(confirmed=confirmed)

    def ControllerExpandVolume(
        self, request: csi_pb2.ControllerExpandVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.ControllerExpandVolumeResponse:
        """Make the file longer; the node shows it to the device and the filesystem."""
        wanted = capacity_range_of(request) or CapacityRange()
        with self.context.volume_locks.hold(request.volume_id):
            volume = self._found(request.volume_id)
            size = max(volume.size_bytes, round_up(wanted.required_bytes, MIB))
            wanted.check_limit(size)
            self._volumes.grow(volume, size)
        return csi_pb2.ControllerExpandVolumeResponse(capacity_bytes=size, node_expansion_required=True)

    def ListVolumes(
        self, request: csi_pb2.ListVolumesRequest, context: grpc.ServicerContext
    ) -> csi_pb2.ListVolumesResponse:
        """Return the volumes, a page at a time."""
        page, next_token = _page(self._volumes.all(), request.max_entries, request.starting_token)
        entries = [csi_pb2.ListVolumesResponse.Entry(volume=_volume(volume)) for volume in page]
        return csi_pb2.ListVolumesResponse(entries=entries, next_token=next_token)

    def CreateSnapshot(
        self, request: csi_pb2.CreateSnapshotRequest, context: grpc.ServicerContext
    ) -> csi_pb2.CreateSnapshotResponse:
        """Copy a volume that is not in use, or find the copy that an earlier call made."""
        identifier = self._snapshots.identifier(request.name)
        with self.context.volume_locks.hold(identifier, request.source_volume_id):
            snapshot = self._snapshots.find(identifier)
            if snapshot is None:
                source = self._found(request.source_volume_id)
                self._snapshots.create(identifier, source.size_bytes, source)
                snapshot = self._found_snapshot(identifier)
            if snapshot.origin != request.source_volume_id:
                raise AlreadyExists(f"name: {request.name!r} is a snapshot of {snapshot.origin}")
            return csi_pb2.CreateSnapshotResponse(snapshot=_snapshot(snapshot))

    def DeleteSnapshot(
        self, request: csi_pb2.DeleteSnapshotRequest, context: grpc.ServicerContext
    ) -> csi_pb2.DeleteSnapshotResponse:
        """Remove a snapshot; OK when there is none."""
        with self.context.volume_locks.hold(request.snapshot_id):
            if snapshot := self._snapshots.find(request.snapshot_id):
                self._snapshots.remove(snapshot)
        return csi_pb2.DeleteSnapshotResponse()

    def ListSnapshots(
        self, request: csi_pb2.ListSnapshotsRequest, context: grpc.ServicerContext
    ) -> csi_pb2.ListSnapshotsResponse:
        """Return the snapshots, all or one or one volume's, a page at a time."""
        asked = [
            snapshot
            for snapshot in self._snapshots.all()
            if request.snapshot_id in {"", snapshot.identifier} and request.source_volume_id in {"", snapshot.origin}
        ]
        page, next_token = _page(asked, request.max_entries, request.starting_token)
        entries = [csi_pb2.ListSnapshotsResponse.Entry(snapshot=_snapshot(snapshot)) for snapshot in page]
        return csi_pb2.ListSnapshotsResponse(entries=entries, next_token=next_token)

    def _found(self, volume_id: str) -> File:
        volume = self._volumes.find(volume_id)
        if volume is None:
            raise NotFound(f"volume_id: there is no volume {volume_id}")
        return volume

    def _found_snapshot(self, snapshot_id: str) -> File:
        snapshot = self._snapshots.find(snapshot_id)
        if snapshot is None:
            raise NotFound(f"snapshot_id: there is no snapshot {snapshot_id}")
        return snapshot

    def _source(self, source: csi_pb2.VolumeContentSource) -> File | None:
        if source.HasField("snapshot"):
            return self._found_snapshot(source.snapshot.snapshot_id)
        return self._found(source.volume.volume_id) if source.HasField("volume") else None


def check_access(access: VolumeAccess) -> None:
    """Raise InvalidArgument for a use that a file on one machine cannot serve."""
    if access.mode not in MODES:
        names = ", ".join(mode.name for mode in MODES)
        raise InvalidArgument(f"volume_capability.access_mode: expected one of {names}, got {access.mode.name}")
    # The bind mount of a device file can be read-only and its device is not.
    if access.is_block and access.mode.is_reader_only:
        raise InvalidArgument("volume_capability: a block volume can be had for writing only")
    if access.fs_type and access.fs_type not in FILESYSTEMS:
        known = ", ".join(FILESYSTEMS)
        raise InvalidArgument(f"volume_capability.mount.fs_type: expected one of {known}, got {access.fs_type!r}")


def _source_id(source: csi_pb2.VolumeContentSource) -> str:
    return source.snapshot.snapshot_id or source.volume.volume_id


def _size(wanted: CapacityRange, source: File | None) -> int:
    at_least = max(wanted.required_bytes, source.size_bytes if source else 0)
    size = round_up(at_least, MIB) or min(DEFAULT_BYTES, wanted.limit_bytes or DEFAULT_BYTES)
    wanted.check_limit(size)
    return size


def _check_fits(volume: File, wanted: CapacityRange, source_id: str) -> None:
    fits = volume.size_bytes >= wanted.required_bytes
    if wanted.limit_bytes:
        fits = fits and volume.size_bytes <= wanted.limit_bytes
    if not fits:
        raise AlreadyExists(f"name: the volume exists with {volume.size_bytes} bytes, which the range does not allow")
    if volume.origin != (source_id or "new"):
        raise AlreadyExists(f"name: the volume exists, and its content is from {volume.origin}")


def _volume(volume: File) -> csi_pb2.Volume:
    answer = csi_pb2.Volume(volume_id=volume.identifier, capacity_bytes=volume.size_bytes)
    if volume.origin.startswith("snap-"):
        answer.content_source.snapshot.snapshot_id = volume.origin
    elif volume.origin.startswith("vol-"):
        answer.content_source.volume.volume_id = volume.origin
    return answer


def _snapshot(snapshot: File) -> csi_pb2.Snapshot:
    created = Timestamp()
    created.FromNanoseconds(int(snapshot.created * 1e9))
    return csi_pb2.Snapshot(
        snapshot_id=snapshot.identifier,
        source_volume_id=snapshot.origin,
        size_bytes=snapshot.size_bytes,
        creation_time=created,
        ready_to_use=True,
    )


def _page(files: Sequence[File], max_entries: int, token: str) -> tuple[Sequence[File], str]:
    """Return one page and the token of the next: the id to go on behind, so that it outlives what is deleted."""
    if token and not re.fullmatch(r"(vol|snap)-[0-9a-f-]{36}", token):
        raise Aborted(f"starting_token: expected a next_token from an earlier answer, got {token!r}")
    rest = [file for file in files if file.identifier > token]
    if not 0 < max_entries < len(rest):
        return rest, ""
    return rest[:max_entries], rest[max_entries - 1].identifier
