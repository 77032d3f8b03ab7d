import re
from collections.abc import Callable
from typing import Literal

import grpc
from google.protobuf.wrappers_pb2 import BoolValue

from csi_host.driver import Driver
from csi_host.proto import csi_pb2, csi_pb2_grpc

# GetPluginInfoResponse.name: domain name notation, at most 63 characters.
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,61}[A-Za-z0-9])?")

Service = Literal[
    "CONTROLLER_SERVICE",
    "VOLUME_ACCESSIBILITY_CONSTRAINTS",
    "GROUP_CONTROLLER_SERVICE",
    "SNAPSHOT_METADATA_SERVICE",
]
Expansion = Literal["ONLINE", "OFFLINE"]


class IdentityServer(csi_pb2_grpc.IdentityServicer):
    """The Identity service: built by the host from what the driver has.

    ``is_ready`` is asked at each Probe and has to be cheap; it must not ask the storage backend, as a Probe that fails
    makes kubelet restart the driver on every node. Raises ValueError for a name or version the spec does not allow.
    """

    def __init__(
        self,
        *,
        name: str,
        vendor_version: str,
        services: frozenset[Service],
        expansion: Expansion | None,
        is_ready: Callable[[], bool],
    ) -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"driver name {name!r}: expected 1 to 63 letters, digits, '-' and '.', letter or digit at both ends"
            )
        if not vendor_version:
            raise ValueError("vendor version: required")
        self._info = csi_pb2.GetPluginInfoResponse(name=name, vendor_version=vendor_version)
        self._capabilities = csi_pb2.GetPluginCapabilitiesResponse(
            capabilities=[_service(service) for service in sorted(services)]
            + [_expansion(kind) for kind in [expansion] if kind]
        )
        self._is_ready = is_ready

    def GetPluginInfo(
        self,
        request: csi_pb2.GetPluginInfoRequest,  # noqa: ARG002 - an empty message
        context: grpc.ServicerContext,  # noqa: ARG002 - the RPC's signature
    ) -> csi_pb2.GetPluginInfoResponse:
        """Answer with the driver's name and version."""
        return self._info

    def GetPluginCapabilities(
        self,
        request: csi_pb2.GetPluginCapabilitiesRequest,  # noqa: ARG002 - an empty message
        context: grpc.ServicerContext,  # noqa: ARG002 - the RPC's signature
    ) -> csi_pb2.GetPluginCapabilitiesResponse:
        """Answer with what the plugin as a whole can do."""
        return self._capabilities

    def Probe(
        self,
        request: csi_pb2.ProbeRequest,  # noqa: ARG002 - an empty message
        context: grpc.ServicerContext,  # noqa: ARG002 - the RPC's signature
    ) -> csi_pb2.ProbeResponse:
        """Answer whether this process takes calls."""
        return csi_pb2.ProbeResponse(ready=BoolValue(value=self._is_ready()))


def services_of(driver: Driver, *, has_topology: bool) -> frozenset[Service]:
    """Return the plugin capabilities of ``driver`` as a whole.

    The same whichever services this process serves: the CSI spec (GetPluginCapabilities) wants the sum of all
    instances from each of them.
    """
    offered: dict[Service, bool] = {
        "CONTROLLER_SERVICE": driver.controller is not None,
        "VOLUME_ACCESSIBILITY_CONSTRAINTS": has_topology,
        "GROUP_CONTROLLER_SERVICE": driver.group_controller is not None,
        "SNAPSHOT_METADATA_SERVICE": driver.snapshot_metadata is not None,
    }
    return frozenset(service for service, is_offered in offered.items() if is_offered)


def expansion_of(driver: Driver) -> Expansion | None:
    """Return how volumes grow; None when neither of the driver's services can expand one."""
    servers = [server for server in (driver.controller, driver.node) if server is not None]
    if not any("EXPAND_VOLUME" in server.advertised() for server in servers):
        return None
    return driver.controller.expansion if driver.controller is not None else "ONLINE"


def _service(service: Service) -> csi_pb2.PluginCapability:
    return csi_pb2.PluginCapability(
        service=csi_pb2.PluginCapability.Service(type=csi_pb2.PluginCapability.Service.Type.Value(service))
    )


def _expansion(kind: Expansion) -> csi_pb2.PluginCapability:
    return csi_pb2.PluginCapability(
        volume_expansion=csi_pb2.PluginCapability.VolumeExpansion(
            type=csi_pb2.PluginCapability.VolumeExpansion.Type.Value(kind)
        )
    )
