"""The Node service: from CSI's messages to volumes on this node and back."""

import logging
from pathlib import Path
from typing import ClassVar

import grpc

from csi_host.driver import HostContext
from csi_host.errors import CsiError, FailedPrecondition, InvalidArgument
from csi_host.proto import csi_pb2
from csi_host.services.messages import access_of, capacity_range_of
from csi_host.services.node import NodeServer
from csi_host_rbd.credentials import Credentials
from csi_host_rbd.encryption.service import Encryption
from csi_host_rbd.errors import VolumeNotFound
from csi_host_rbd.node.devices import Devices
from csi_host_rbd.node.images import NodeImages, check_encryption
from csi_host_rbd.node.rotating import KeyRotation
from csi_host_rbd.node.staging import Staging, find_staging
from csi_host_rbd.node.volumes import NodeVolumes
from csi_host_rbd.places import Places
from csi_host_rbd.uses import check_use

log = logging.getLogger(__name__)


class RbdNodeServer(NodeServer):
    """Volumes on RBD images, as filesystems and as block devices."""

    features: ClassVar[frozenset[str]] = frozenset({"SINGLE_NODE_MULTI_WRITER"})

    def __init__(self, context: HostContext, *, places: Places, encryption: Encryption, devices: Devices) -> None:
        super().__init__(context)
        self._images = NodeImages(places, encryption)
        self._volumes = NodeVolumes(run=context.run, devices=devices)
        self.key_rotation = KeyRotation(images=self._images, devices=devices, volume_locks=context.volume_locks)

    def NodeStageVolume(
        self,
        request: csi_pb2.NodeStageVolumeRequest,
        context: grpc.ServicerContext,  # noqa: ARG002 - the RPC's signature
    ) -> csi_pb2.NodeStageVolumeResponse:
        """Attach the image and mount it on the staging directory; formats it if it is proven blank."""
        check_encryption(request.volume_context)
        access = access_of(request.volume_capability)
        check_use(access, "volume_capability")
        staging = Staging.of(request.staging_target_path, request.volume_id)
        if not staging.directory.is_dir():
            raise InvalidArgument(
                f"staging_target_path: expected an existing directory, got {request.staging_target_path}"
            )
        credentials = Credentials.from_secrets(request.secrets)
        with self.context.volume_locks.hold(request.volume_id):
            if self._volumes.is_staged(staging, access):
                self._keep_key(staging, request, credentials)
            else:
                with self._images.find(
                    request.volume_id, request.volume_context, credentials, request.secrets
                ) as image:
                    self._volumes.stage(staging, access, image)
        return csi_pb2.NodeStageVolumeResponse()

    def NodeUnstageVolume(
        self,
        request: csi_pb2.NodeUnstageVolumeRequest,
        context: grpc.ServicerContext,  # noqa: ARG002 - the RPC's signature
    ) -> csi_pb2.NodeUnstageVolumeResponse:
        """Unmount and detach the volume, from what the staging directory says alone; OK when it is gone."""
        with self.context.volume_locks.hold(request.volume_id):
            try:
                staging = Staging.of(request.staging_target_path, request.volume_id)
            except VolumeNotFound:
                return csi_pb2.NodeUnstageVolumeResponse()
            self._volumes.unstage(staging)
        return csi_pb2.NodeUnstageVolumeResponse()

    def NodePublishVolume(
        self,
        request: csi_pb2.NodePublishVolumeRequest,
        context: grpc.ServicerContext,  # noqa: ARG002 - the RPC's signature
    ) -> csi_pb2.NodePublishVolumeResponse:
        """Bind mount the staged volume at the target."""
        check_encryption(request.volume_context)
        access = access_of(request.volume_capability)
        check_use(access, "volume_capability")
        if not request.staging_target_path:
            raise FailedPrecondition("staging_target_path: required, as this driver stages volumes")
        staging = Staging.of(request.staging_target_path, request.volume_id)
        with self.context.volume_locks.hold(request.volume_id):
            self._volumes.publish(staging, Path(request.target_path), access, read_only=request.readonly)
        return csi_pb2.NodePublishVolumeResponse()

    def NodeUnpublishVolume(
        self,
        request: csi_pb2.NodeUnpublishVolumeRequest,
        context: grpc.ServicerContext,  # noqa: ARG002 - the RPC's signature
    ) -> csi_pb2.NodeUnpublishVolumeResponse:
        """Unmount the target and remove it; OK when it is gone."""
        with self.context.volume_locks.hold(request.volume_id):
            self._volumes.unpublish(Path(request.target_path))
        return csi_pb2.NodeUnpublishVolumeResponse()

    def NodeExpandVolume(
        self,
        request: csi_pb2.NodeExpandVolumeRequest,
        context: grpc.ServicerContext,  # noqa: ARG002 - the RPC's signature
    ) -> csi_pb2.NodeExpandVolumeResponse:
        """Show the size that the image has, in the device and in the filesystem on it."""
        capacity = capacity_range_of(request)
        with self.context.volume_locks.hold(request.volume_id):
            staging = _find_staged(request)
            size = self._volumes.expand(staging, required_bytes=capacity.required_bytes if capacity else 0)
        return csi_pb2.NodeExpandVolumeResponse(capacity_bytes=size)

    def _keep_key(self, staging: Staging, request: csi_pb2.NodeStageVolumeRequest, credentials: Credentials) -> None:
        """Use that a staged volume's key is at hand again: ceph-csi, or a call that was killed, has not kept it."""
        try:
            self._volumes.keep(
                staging, lambda stash: self._images.attach_request(stash, request.volume_context, credentials)
            )
        except CsiError as error:
            log.warning("volume %s is staged, but how to heal its device is not kept: %s", request.volume_id, error)


def _find_staged(request: csi_pb2.NodeExpandVolumeRequest) -> Staging:
    """Return where the volume is staged: as the caller says, or as the mount at volume_path shows."""
    if request.staging_target_path:
        staging = Staging.of(request.staging_target_path, request.volume_id)
        if staging.mount() is not None:
            return staging
    found = find_staging(request.volume_id, request.volume_path)
    if found is None:
        raise VolumeNotFound(f"volume_path: volume {request.volume_id} is not mounted at {request.volume_path}")
    return found
