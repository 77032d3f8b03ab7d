from csi_host import capabilities
from csi_host.proto import csi_pb2_grpc
from csi_host.services.base import ServiceServer


class SnapshotMetadataServer(ServiceServer, csi_pb2_grpc.SnapshotMetadataServicer):
    """The SnapshotMetadata service: two streams of data ranges, each UNIMPLEMENTED until a driver overrides it."""

    rules = capabilities.SNAPSHOT_METADATA
