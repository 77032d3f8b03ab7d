"""The gRPC server of one driver."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import grpc

from csi_host.driver import Driver
from csi_host.proto import csi_pb2, csi_pb2_grpc
from csi_host.request import Request
from csi_host.server.endpoint import Endpoint, EndpointError
from csi_host.server.in_flight import Call, InFlightCalls
from csi_host.server.interceptor import HostInterceptor
from csi_host.server.pools import DaemonPool
from csi_host.server.slow_calls import SlowCallLog
from csi_host.server.socket_guard import SocketGuard
from csi_host.services.identity import IdentityServer, expansion_of, services_of

_IDENTITY_WORKERS = 2
_LIGHT_WORKERS = 4
# A stream lasts for as long as its reader likes: with threads of their own, streams cannot take those of other calls.
_STREAM_WORKERS = 16
# Asked several times before each stage and publish; a driver may override them, so Identity has threads of its own.
_LIGHT_RPCS = frozenset(
    {"ControllerGetCapabilities", "GroupControllerGetCapabilities", "NodeGetCapabilities", "NodeGetInfo"}
)
_FLUSH_SECONDS = 1.0

_LOGGER = logging.getLogger("csi_host.server")


class CsiServer:
    """Serves the services that the mode asks for and the driver has, and Identity, at one endpoint.

    ``log_slow_interval`` is in seconds, 0 turns the slow-call log off; ``interceptors`` run inside the host's own.
    """

    def __init__(
        self,
        *,
        driver: Driver,
        driver_name: str,
        vendor_version: str,
        endpoint: Endpoint,
        serves_controller: bool,
        serves_node: bool,
        has_topology: bool,
        log_slow_interval: float,
        interceptors: Sequence[grpc.ServerInterceptor] = (),
        workers: int = 64,
    ) -> None:
        self.in_flight = InFlightCalls()
        self._endpoint = endpoint
        self._guard = SocketGuard(endpoint.path) if endpoint.kind == "unix" else None
        self._port = endpoint.port
        self._is_serving = False
        self._pools = [
            DaemonPool(workers, "rpc"),
            DaemonPool(_LIGHT_WORKERS, "light"),
            DaemonPool(_IDENTITY_WORKERS, "identity"),
            DaemonPool(_STREAM_WORKERS, "stream"),
        ]
        self._slow_calls = SlowCallLog(self.in_flight, log_slow_interval, _LOGGER)
        identity = IdentityServer(
            name=driver_name,
            vendor_version=vendor_version,
            services=services_of(driver, has_topology=has_topology),
            expansion=expansion_of(driver),
            is_ready=self._is_ready,
        )
        self._server = self._grpc_server(interceptors)
        csi_pb2_grpc.add_IdentityServicer_to_server(identity, self._server)
        for register in _registrations(driver, serves_controller=serves_controller, serves_node=serves_node):
            register(self._server)

    @property
    def address(self) -> str:
        """The gRPC target to reach the server at; with port 0, the port that was given once it listens."""
        if self._endpoint.kind == "unix":
            return self._endpoint.grpc_target
        return Endpoint(kind="tcp", host=self._endpoint.host, port=self._port).grpc_target

    def start(self) -> None:
        """Bind and listen; raises EndpointError when the endpoint cannot be had."""
        if self._guard is None:
            self._port = self._bind(self._endpoint.grpc_target)
        else:
            self._start_at(self._guard)
        self._server.start()
        self._is_serving = True
        self._slow_calls.start()
        _LOGGER.info(f"listening at {self._endpoint}", extra={"address": self.address})

    def stop(self, grace_seconds: float) -> list[Request]:
        """Take no more calls, wait for those that are served, and return the ones that did not end in time.

        A new call gets UNAVAILABLE at once, and Probe says "not ready". After ``grace_seconds`` the callers of the
        unfinished ones are told as well.
        """
        return [call.request for call in self.drain(grace_seconds)]

    def drain(self, grace_seconds: float) -> list[Call]:
        """Do what ``stop`` does, and return the unfinished calls with their threads."""
        deadline = time.monotonic() + grace_seconds
        # The host's interceptor refuses new calls from here on. gRPC's own stop would answer some of them CANCELLED.
        self._is_serving = False
        # Handlers are counted, not gRPC's calls: one whose caller has given up may be at work all the same.
        unfinished = self.in_flight.wait_until_none(deadline)
        if self._guard is not None:
            self._guard.remove_socket()
        # Answers that are on their way out still get there; then what is left is cancelled.
        self._server.stop(_FLUSH_SECONDS).wait(2 * _FLUSH_SECONDS)
        self._slow_calls.stop()
        for pool in self._pools:
            pool.shutdown()
        # Handlers still at work on volumes keep the lock: no successor may begin before this process has gone.
        if self._guard is not None and not unfinished:
            self._guard.release()
        return unfinished

    def _start_at(self, guard: SocketGuard) -> None:
        guard.claim()
        try:
            with guard.binding() as private_path:
                self._bind(f"unix:{private_path}")
        except BaseException:
            guard.release()
            raise

    def _bind(self, target: str) -> int:
        try:
            return self._server.add_insecure_port(target)
        except RuntimeError as error:
            raise EndpointError(f"endpoint {self._endpoint}: cannot be listened on: {error}") from error

    def _is_ready(self) -> bool:
        return self._is_serving and all(pool.is_open for pool in self._pools)

    def _grpc_server(self, interceptors: Sequence[grpc.ServerInterceptor]) -> grpc.Server:
        workers, light, identity, streams = self._pools
        host = HostInterceptor(
            calls=self.in_flight,
            pools=dict(_own_pools(light=light, identity=identity, streams=streams)),
            is_serving=lambda: self._is_serving,
            logger=_LOGGER,
        )
        # Never maximum_concurrent_rpcs: it answers RESOURCE_EXHAUSTED, which means "no space here" to the provisioner.
        return grpc.server(
            workers,
            interceptors=[host, *interceptors],
            # With port reuse a second server binds the same port silently and gets half of the calls.
            options=[("grpc.so_reuseport", 0)],
        )


def _own_pools(
    *, light: ThreadPoolExecutor, identity: ThreadPoolExecutor, streams: ThreadPoolExecutor
) -> Iterator[tuple[str, ThreadPoolExecutor]]:
    for service in csi_pb2.DESCRIPTOR.services_by_name.values():
        for rpc, method in service.methods_by_name.items():
            if method.server_streaming:
                yield f"/{service.full_name}/{rpc}", streams
            elif service.name == "Identity":
                yield f"/{service.full_name}/{rpc}", identity
            elif rpc in _LIGHT_RPCS:
                yield f"/{service.full_name}/{rpc}", light


def _registrations(
    driver: Driver, *, serves_controller: bool, serves_node: bool
) -> Iterator[Callable[[grpc.Server], None]]:
    if serves_controller and (controller := driver.controller):
        yield lambda server: csi_pb2_grpc.add_ControllerServicer_to_server(controller, server)
    if serves_controller and (groups := driver.group_controller):
        yield lambda server: csi_pb2_grpc.add_GroupControllerServicer_to_server(groups, server)
    if serves_controller and (metadata := driver.snapshot_metadata):
        yield lambda server: csi_pb2_grpc.add_SnapshotMetadataServicer_to_server(metadata, server)
    if serves_node and (node := driver.node):
        yield lambda server: csi_pb2_grpc.add_NodeServicer_to_server(node, server)
