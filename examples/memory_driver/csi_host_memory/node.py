"""Volumes on this machine: a file becomes a loop device, and that a filesystem in a pod or a device in it."""
# ruff: noqa: ARG002 - an RPC's method has gRPC's context whether it needs it or not

from contextlib import ExitStack
from pathlib import Path

import grpc

from csi_host.access import VolumeAccess
from csi_host.driver import HostContext
from csi_host.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from csi_host.node.mounts import mount_at
from csi_host.proto import csi_pb2
from csi_host.services.messages import access_of
from csi_host.services.node import NodeServer
from csi_host_common_node.block import LoopDevices
from csi_host_common_node.filesystem import Blank, Filesystems
from csi_host_common_node.mounter import Mounter
from csi_host_common_node.resize import Grower
from csi_host_common_node.volumes import publish_block, publish_filesystem, unpublish
from csi_host_memory.controller import check_access
from csi_host_memory.files import File, Files


class MemoryNode(NodeServer):
    """The Node service; NodeGetInfo, NodeGetCapabilities and NodeGetVolumeStats are the host's own."""

    def __init__(self, context: HostContext, *, volumes: Files, default_filesystem: str) -> None:
        super().__init__(context)
        self._volumes = volumes
        self._default_filesystem = default_filesystem
        self._loops = LoopDevices(context.run)
        self._mounter = Mounter(context.run)
        self._filesystems = Filesystems(context.run)
        self._grower = Grower(context.run)

    def NodeStageVolume(
        self, request: csi_pb2.NodeStageVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodeStageVolumeResponse:
        """Attach the volume; mount it on the staging directory unless it is used as a device."""
        access = access_of(request.volume_capability)
        check_access(access)
        with self.context.volume_locks.hold(request.volume_id):
            volume = self._found(request.volume_id)
            # Undone in reverse when a step fails: a failed call leaves nothing, since nobody may come to clean up.
            with ExitStack() as undo:
                is_attached = bool(self._loops.find(volume.path))
                device = self._loops.attach(volume.path)
                if not is_attached:
                    undo.callback(self._loops.detach, device)
                if not access.is_block:
                    self._mount(device, Path(request.staging_target_path), access, undo)
                undo.pop_all()
        return csi_pb2.NodeStageVolumeResponse()

    def NodeUnstageVolume(
        self, request: csi_pb2.NodeUnstageVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodeUnstageVolumeResponse:
        """Unmount and detach the volume; OK when it is neither."""
        with self.context.volume_locks.hold(request.volume_id):
            self._mounter.unmount(request.staging_target_path)
            if volume := self._volumes.find(request.volume_id):
                for device in self._loops.find(volume.path):
                    self._loops.detach(device)
        return csi_pb2.NodeUnstageVolumeResponse()

    def NodePublishVolume(
        self, request: csi_pb2.NodePublishVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodePublishVolumeResponse:
        """Show the staged volume at the target."""
        access = access_of(request.volume_capability)
        check_access(access)
        if access.is_block and request.readonly:
            raise InvalidArgument("readonly: a block volume can be had for writing only")
        if not request.staging_target_path:
            raise FailedPrecondition("staging_target_path: required, as this driver stages volumes")
        with self.context.volume_locks.hold(request.volume_id):
            device = self._device(self._found(request.volume_id))
            if access.is_block:
                publish_block(self._mounter, device, request.target_path)
            else:
                is_read_only = request.readonly or access.mode.is_reader_only
                publish_filesystem(
                    self._mounter, request.staging_target_path, request.target_path, access.mount_flags, is_read_only
                )
        return csi_pb2.NodePublishVolumeResponse()

    def NodeUnpublishVolume(
        self, request: csi_pb2.NodeUnpublishVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodeUnpublishVolumeResponse:
        """Take the volume away from the target; OK when it is gone."""
        with self.context.volume_locks.hold(request.volume_id):
            unpublish(self._mounter, request.target_path)
        return csi_pb2.NodeUnpublishVolumeResponse()

    def NodeExpandVolume(
        self, request: csi_pb2.NodeExpandVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodeExpandVolumeResponse:
        """Show the file's size to the device, and to the filesystem on it."""
        with self.context.volume_locks.hold(request.volume_id):
            volume = self._found(request.volume_id)
            path = Path(request.volume_path)
            if not path.exists():
                raise NotFound(f"volume_path: there is nothing at {path}")
            device = self._device(volume)
            self._loops.grow(device)
            if not path.is_block_device():
                self._grower.grow(device, path)
        return csi_pb2.NodeExpandVolumeResponse(capacity_bytes=volume.size_bytes)

    def _mount(self, device: str, staging: Path, access: VolumeAccess, undo: ExitStack) -> None:
        if mount := mount_at(staging):
            if mount.source != device:
                raise AlreadyExists(f"staging_target_path: {mount.source} is mounted at {staging}, not {device}")
            return
        content = self._filesystems.content_of(device)
        if isinstance(content, Blank):
            # Refuses what is not proven blank, byte by byte: no signature is not yet no data.
            fs_type = access.fs_type or self._default_filesystem
            self._filesystems.format(device, fs_type)
        else:
            fs_type = access.fs_type or content.kind
            self._filesystems.check(device, fs_type)
        # A volume copied into a larger one, or grown while it was not in use. An ext grows now, an xfs once mounted.
        self._grower.grow(device)
        # A copy has its source's UUID, of which xfs mounts one at a time unless told that it is meant so.
        flags = [*access.mount_flags, "nouuid"] if fs_type == "xfs" else access.mount_flags
        self._mounter.mount(device, staging, fs_type, flags)
        undo.callback(self._mounter.unmount, staging)
        self._grower.grow(device, staging)

    def _found(self, volume_id: str) -> File:
        volume = self._volumes.find(volume_id)
        if volume is None:
            raise NotFound(f"volume_id: there is no volume {volume_id} on this machine")
        return volume

    def _device(self, volume: File) -> str:
        devices = self._loops.find(volume.path)
        if not devices:
            raise FailedPrecondition(f"volume_id: {volume.identifier} is not staged on this machine")
        return devices[0]
