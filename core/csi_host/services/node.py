from pathlib import Path
from typing import ClassVar

import grpc

from csi_host import capabilities
from csi_host.errors import FailedPrecondition
from csi_host.proto import csi_pb2, csi_pb2_grpc
from csi_host.services.base import ServiceServer
from csi_host.services.messages import stats_response

_Type = csi_pb2.NodeServiceCapability.RPC.Type


class NodeServer(ServiceServer, csi_pb2_grpc.NodeServicer):
    """The Node service: info, capabilities and volume stats are done; the rest is UNIMPLEMENTED until overridden.

    ``max_volumes_per_node`` 0 leaves the number to the CO. A driver that overrides NodeGetVolumeStats and reports the
    volume's condition says so with the feature VOLUME_CONDITION.
    """

    rules = capabilities.NODE
    max_volumes_per_node: ClassVar[int] = 0

    @classmethod
    def capabilities(cls) -> frozenset[str]:
        """Return the names of the capabilities that the class has."""
        names = super().capabilities()
        if "GET_VOLUME_STATS" in names and cls.NodeGetVolumeStats is NodeServer.NodeGetVolumeStats:
            return names | {"VOLUME_CONDITION"}
        return names

    def NodeGetInfo(
        self,
        request: csi_pb2.NodeGetInfoRequest,  # noqa: ARG002 - an empty message
        context: grpc.ServicerContext,  # noqa: ARG002 - the RPC's signature
    ) -> csi_pb2.NodeGetInfoResponse:
        """Answer with this node's id and where it is; raises FailedPrecondition without a node id."""
        if not self.context.node_id:
            raise FailedPrecondition("node id: expected a name for this node, none was configured")
        response = csi_pb2.NodeGetInfoResponse(
            node_id=self.context.node_id, max_volumes_per_node=self.max_volumes_per_node
        )
        # A topology, even an empty one, is only for plugins with VOLUME_ACCESSIBILITY_CONSTRAINTS.
        if self.context.topology:
            response.accessible_topology.segments.update(self.context.topology)
        return response

    def NodeGetCapabilities(
        self,
        request: csi_pb2.NodeGetCapabilitiesRequest,  # noqa: ARG002 - an empty message
        context: grpc.ServicerContext,  # noqa: ARG002 - the RPC's signature
    ) -> csi_pb2.NodeGetCapabilitiesResponse:
        """Answer with what this server can do."""
        return csi_pb2.NodeGetCapabilitiesResponse(
            capabilities=[
                csi_pb2.NodeServiceCapability(rpc=csi_pb2.NodeServiceCapability.RPC(type=_Type.Value(name)))
                for name in sorted(self.advertised(), key=_Type.Value)
            ]
        )

    def NodeGetVolumeStats(
        self,
        request: csi_pb2.NodeGetVolumeStatsRequest,
        context: grpc.ServicerContext,  # noqa: ARG002 - the RPC's signature
    ) -> csi_pb2.NodeGetVolumeStatsResponse:
        """Answer how full the volume is and whether it is well; takes no lock, as kubelet asks every minute.

        Raises NotFound when nothing is mounted at the path. A dead mount is an answer: no usage, condition abnormal.
        """
        return stats_response(self.context.volume_stats(Path(request.volume_path)))
