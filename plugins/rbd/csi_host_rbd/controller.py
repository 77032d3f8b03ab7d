"""The Controller service: from CSI's messages to volumes and back."""

from collections.abc import Sequence
from typing import ClassVar

import grpc

from csi_host.access import VolumeAccess
from csi_host.capacity import CapacityRange
from csi_host.driver import HostContext
from csi_host.errors import InvalidArgument
from csi_host.proto import csi_pb2
from csi_host.services.controller import ControllerServer
from csi_host.services.messages import access_of, capacity_range_of
from csi_host_rbd.credentials import Credentials
from csi_host_rbd.parameters import VolumeParameters, parse_parameters
from csi_host_rbd.sizes import image_size
from csi_host_rbd.uses import check_use
from csi_host_rbd.volumes import Volume, Volumes, WantedVolume


class RbdControllerServer(ControllerServer):
    """Volumes on RBD images."""

    features: ClassVar[frozenset[str]] = frozenset({"SINGLE_NODE_MULTI_WRITER"})

    def __init__(self, context: HostContext, *, volumes: Volumes) -> None:
        super().__init__(context)
        self._volumes = volumes

    def CreateVolume(
        self,
        request: csi_pb2.CreateVolumeRequest,
        context: grpc.ServicerContext,  # noqa: ARG002 - the RPC's signature
    ) -> csi_pb2.CreateVolumeResponse:
        """Make a volume from nothing, or return the one of that name (contract of ceph-csi, CSI spec CreateVolume)."""
        parameters = parse_parameters(request.parameters)
        _refuse_source(request)
        _check_uses([access_of(capability) for capability in request.volume_capabilities])
        if request.mutable_parameters:
            names = ", ".join(sorted(request.mutable_parameters))
            raise InvalidArgument(f"mutable_parameters: none can be changed by this driver, got {names}")
        credentials = Credentials.from_secrets(request.secrets)
        capacity = capacity_range_of(request)
        wanted = WantedVolume(
            name=request.name,
            size_bytes=image_size(capacity),
            capacity=capacity or CapacityRange(),
            parameters=parameters,
        )
        return csi_pb2.CreateVolumeResponse(volume=_message(self._volumes.create(wanted, credentials), parameters))

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
            _check_uses([access_of(capability) for capability in request.volume_capabilities])
            if request.parameters:
                parse_parameters(request.parameters)
        except InvalidArgument as reason:
            return csi_pb2.ValidateVolumeCapabilitiesResponse(message=str(reason))
        return csi_pb2.ValidateVolumeCapabilitiesResponse(
            confirmed=csi_pb2.ValidateVolumeCapabilitiesResponse.Confirmed(
                volume_context=request.volume_context,
                volume_capabilities=request.volume_capabilities,
                parameters=request.parameters,
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


def _refuse_source(request: csi_pb2.CreateVolumeRequest) -> None:
    if request.HasField("volume_content_source"):
        raise InvalidArgument("volume_content_source: volumes are made from nothing only; leave it out")
    for index, capability in enumerate(request.volume_capabilities):
        if access_of(capability).mode.is_reader_only:
            raise InvalidArgument(
                f"volume_capabilities[{index}].access_mode: a volume that nobody may write needs a "
                "volume_content_source to have something to read"
            )


def _check_uses(uses: Sequence[VolumeAccess]) -> None:
    for index, use in enumerate(uses):
        check_use(use, f"volume_capabilities[{index}]")


def _message(volume: Volume, parameters: VolumeParameters) -> csi_pb2.Volume:
    # What is real comes last, so that it wins over what the class says.
    context = {
        **parameters.passed_on,
        "pool": volume.pool,
        "journalPool": volume.journal_pool,
        "imageName": volume.image_name,
    }
    if volume.namespace:
        context["radosNamespace"] = volume.namespace
    if parameters.data_pool:
        context["dataPool"] = parameters.data_pool
    return csi_pb2.Volume(volume_id=str(volume.volume_id), capacity_bytes=volume.size_bytes, volume_context=context)
