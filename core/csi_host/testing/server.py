import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from csi_host.driver import Driver
from csi_host.proto import csi_pb2_grpc
from csi_host.server.endpoint import Endpoint
from csi_host.server.server import CsiServer

_GRACE_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Served:
    """A driver behind a real server, and a client's stubs for every service."""

    server: CsiServer
    channel: grpc.Channel
    socket: Path
    identity: csi_pb2_grpc.IdentityStub
    controller: csi_pb2_grpc.ControllerStub
    group_controller: csi_pb2_grpc.GroupControllerStub
    snapshot_metadata: csi_pb2_grpc.SnapshotMetadataStub
    node: csi_pb2_grpc.NodeStub


@contextmanager
def serving(
    driver: Driver,
    *,
    serves_controller: bool = True,
    serves_node: bool = True,
    has_topology: bool = False,
    log_slow_interval: float = 0.0,
    interceptors: Sequence[grpc.ServerInterceptor] = (),
    workers: int = 8,
) -> Iterator[Served]:
    """Serve ``driver`` on a unix socket in a directory of its own for the length of the ``with``.

    Raises AssertionError on leaving when a call is still being served.
    """
    # Not pytest's tmp_path, which is often longer than a socket's path may be.
    with tempfile.TemporaryDirectory(prefix="csi-") as directory:
        socket = Path(directory) / "csi.sock"
        server = CsiServer(
            driver=driver,
            driver_name="test.csi.example",
            vendor_version="0.0.0-test",
            endpoint=Endpoint(kind="unix", path=socket),
            serves_controller=serves_controller,
            serves_node=serves_node,
            has_topology=has_topology,
            log_slow_interval=log_slow_interval,
            interceptors=interceptors,
            workers=workers,
        )
        server.start()
        try:
            with grpc.insecure_channel(server.address) as channel:
                yield _served(server, channel, socket)
        finally:
            unfinished = server.stop(_GRACE_SECONDS)
        if unfinished:
            raise AssertionError(f"calls are still being served: {', '.join(request.rpc for request in unfinished)}")


def _served(server: CsiServer, channel: grpc.Channel, socket: Path) -> Served:
    return Served(
        server=server,
        channel=channel,
        socket=socket,
        identity=csi_pb2_grpc.IdentityStub(channel),
        controller=csi_pb2_grpc.ControllerStub(channel),
        group_controller=csi_pb2_grpc.GroupControllerStub(channel),
        snapshot_metadata=csi_pb2_grpc.SnapshotMetadataStub(channel),
        node=csi_pb2_grpc.NodeStub(channel),
    )
