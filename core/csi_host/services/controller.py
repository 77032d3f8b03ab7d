from typing import ClassVar, Literal

import grpc

from csi_host import capabilities
from csi_host.proto import csi_pb2, csi_pb2_grpc
from csi_host.services.base import ServiceServer

_Type = csi_pb2.ControllerServiceCapability.RPC.Type


class ControllerServer(ServiceServer, csi_pb2_grpc.ControllerServicer):
    """The Controller service: every RPC answers UNIMPLEMENTED until a driver overrides it.

    ``expansion`` says whether a published volume can grow (ONLINE) or only one that is nowhere in use (OFFLINE).
    """

    rules = capabilities.CONTROLLER
    expansion: ClassVar[Literal["ONLINE", "OFFLINE"]] = "ONLINE"

    def ControllerGetCapabilities(
        self,
        request: csi_pb2.ControllerGetCapabilitiesRequest,  # noqa: ARG002 - an empty message
        context: grpc.ServicerContext,  # noqa: ARG002 - the RPC's signature
    ) -> csi_pb2.ControllerGetCapabilitiesResponse:
        """Answer with what this server can do."""
        return csi_pb2.ControllerGetCapabilitiesResponse(
            capabilities=[
                csi_pb2.ControllerServiceCapability(rpc=csi_pb2.ControllerServiceCapability.RPC(type=_Type.Value(name)))
                for name in sorted(self.advertised(), key=_Type.Value)
            ]
        )
