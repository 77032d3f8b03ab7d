import grpc

from csi_host import capabilities
from csi_host.proto import csi_pb2, csi_pb2_grpc
from csi_host.services.base import ServiceServer

_Type = csi_pb2.GroupControllerServiceCapability.RPC.Type


class GroupControllerServer(ServiceServer, csi_pb2_grpc.GroupControllerServicer):
    """The GroupController service: create, delete and get group snapshots, all three or none."""

    rules = capabilities.GROUP_CONTROLLER

    def GroupControllerGetCapabilities(
        self,
        request: csi_pb2.GroupControllerGetCapabilitiesRequest,  # noqa: ARG002 - an empty message
        context: grpc.ServicerContext,  # noqa: ARG002 - the RPC's signature
    ) -> csi_pb2.GroupControllerGetCapabilitiesResponse:
        """Answer with what this server can do."""
        return csi_pb2.GroupControllerGetCapabilitiesResponse(
            capabilities=[
                csi_pb2.GroupControllerServiceCapability(
                    rpc=csi_pb2.GroupControllerServiceCapability.RPC(type=_Type.Value(name))
                )
                for name in sorted(self.advertised(), key=_Type.Value)
            ]
        )
