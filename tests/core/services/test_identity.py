from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from csi_host.driver import Driver, HostContext
from csi_host.proto import csi_pb2
from csi_host.services.controller import ControllerServer
from csi_host.services.group_controller import GroupControllerServer
from csi_host.services.identity import IdentityServer
from csi_host.services.node import NodeServer
from csi_host.services.snapshot_metadata import SnapshotMetadataServer
from csi_host.testing.contexts import host_context
from csi_host.testing.server import Served, serving


class GrowingController(ControllerServer):
    expansion = "OFFLINE"

    def ControllerExpandVolume(
        self, request: csi_pb2.ControllerExpandVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.ControllerExpandVolumeResponse:
        del context
        return csi_pb2.ControllerExpandVolumeResponse(capacity_bytes=request.capacity_range.required_bytes)


class GrowingNode(NodeServer):
    def NodeExpandVolume(
        self, request: csi_pb2.NodeExpandVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.NodeExpandVolumeResponse:
        del context
        return csi_pb2.NodeExpandVolumeResponse(capacity_bytes=request.capacity_range.required_bytes)


@pytest.fixture
def context(tmp_path: Path) -> HostContext:
    return host_context(tmp_path)


def whole_driver(context: HostContext) -> Driver:
    return Driver(
        controller=GrowingController(context),
        node=GrowingNode(context),
        group_controller=GroupControllerServer(context),
        snapshot_metadata=SnapshotMetadataServer(context),
    )


def capabilities(served: Served) -> Iterator[str]:
    for capability in served.identity.GetPluginCapabilities(csi_pb2.GetPluginCapabilitiesRequest()).capabilities:
        if capability.HasField("service"):
            yield csi_pb2.PluginCapability.Service.Type.Name(capability.service.type)
        else:
            yield csi_pb2.PluginCapability.VolumeExpansion.Type.Name(capability.volume_expansion.type)


def capabilities_of(driver: Driver, **mode: Any) -> set[str]:
    with serving(driver, **mode) as served:
        return set(capabilities(served))


def test_the_info_has_name_and_version(context: HostContext) -> None:
    with serving(whole_driver(context)) as served:
        info = served.identity.GetPluginInfo(csi_pb2.GetPluginInfoRequest())
    assert (info.name, info.vendor_version) == ("test.csi.example", "0.0.0-test")


@pytest.mark.parametrize(
    "mode", [{}, {"serves_controller": False}, {"serves_node": False}], ids=["both", "node", "controller"]
)
def test_every_process_of_a_plugin_advertises_the_whole_plugin(context: HostContext, mode: dict[str, bool]) -> None:
    assert capabilities_of(whole_driver(context), **mode) == {
        "CONTROLLER_SERVICE",
        "GROUP_CONTROLLER_SERVICE",
        "SNAPSHOT_METADATA_SERVICE",
        "OFFLINE",
    }


def test_a_driver_without_a_controller_advertises_none(context: HostContext) -> None:
    assert capabilities_of(Driver(node=GrowingNode(context))) == {"ONLINE"}


def test_expansion_is_advertised_where_one_of_the_services_can_expand(context: HostContext) -> None:
    on_the_node_only = Driver(controller=ControllerServer(context), node=GrowingNode(context))
    assert capabilities_of(on_the_node_only) == {"CONTROLLER_SERVICE", "ONLINE"}
    assert capabilities_of(Driver(controller=ControllerServer(context), node=NodeServer(context))) == {
        "CONTROLLER_SERVICE"
    }
    assert capabilities_of(Driver(node=NodeServer(context))) == set()


def test_topology_is_advertised_only_when_it_is_in_use(context: HostContext) -> None:
    driver = Driver(node=NodeServer(context))
    assert capabilities_of(driver, has_topology=True) == {"VOLUME_ACCESSIBILITY_CONSTRAINTS"}


def test_a_service_that_is_not_served_is_not_there(context: HostContext) -> None:
    with serving(whole_driver(context), serves_controller=False) as served:
        served.node.NodeGetInfo(csi_pb2.NodeGetInfoRequest())
        with pytest.raises(grpc.RpcError) as caught:
            served.controller.ControllerGetCapabilities(csi_pb2.ControllerGetCapabilitiesRequest())
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    with serving(whole_driver(context), serves_node=False) as served:
        served.controller.ControllerGetCapabilities(csi_pb2.ControllerGetCapabilitiesRequest())
        with pytest.raises(grpc.RpcError) as caught:
            served.node.NodeGetInfo(csi_pb2.NodeGetInfoRequest())
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_served_process_is_ready(context: HostContext) -> None:
    with serving(whole_driver(context)) as served:
        assert served.identity.Probe(csi_pb2.ProbeRequest()).ready.value


@pytest.mark.parametrize("name", ["", "-a", "a-", "a_b", "a b", "a" * 64, "a\n"])
def test_a_name_the_spec_does_not_allow_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="driver name"):
        identity(name=name, vendor_version="1")


@pytest.mark.parametrize("name", ["a", "rbd.csi.ceph.com", "A9", "a" * 63])
def test_a_name_the_spec_allows_is_taken(name: str) -> None:
    identity(name=name, vendor_version="1")


def test_a_version_is_required() -> None:
    with pytest.raises(ValueError, match="vendor version: required"):
        identity(name="a", vendor_version="")


def identity(*, name: str, vendor_version: str) -> IdentityServer:
    return IdentityServer(
        name=name, vendor_version=vendor_version, services=frozenset(), expansion=None, is_ready=lambda: True
    )
