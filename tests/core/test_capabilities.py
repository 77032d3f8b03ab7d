from pathlib import Path
from typing import Any

import pytest

from csi_host import capabilities
from csi_host.proto import csi_pb2
from csi_host.services.controller import ControllerServer
from csi_host.services.group_controller import GroupControllerServer
from csi_host.services.node import NodeServer
from csi_host.services.snapshot_metadata import SnapshotMetadataServer
from csi_host.testing.contexts import host_context

ENUMS = {
    "Controller": csi_pb2.ControllerServiceCapability.RPC.Type,
    "Node": csi_pb2.NodeServiceCapability.RPC.Type,
    "GroupController": csi_pb2.GroupControllerServiceCapability.RPC.Type,
}
BASES: dict[str, type[Any]] = {
    "Controller": ControllerServer,
    "Node": NodeServer,
    "GroupController": GroupControllerServer,
    "SnapshotMetadata": SnapshotMetadataServer,
}
RULES = {
    "Controller": capabilities.CONTROLLER,
    "Node": capabilities.NODE,
    "GroupController": capabilities.GROUP_CONTROLLER,
}


def made(base: str, *rpcs: str, features: set[str] = frozenset(), unadvertised: set[str] = frozenset()) -> type[Any]:  # type: ignore[assignment] # an empty default
    members: dict[str, Any] = {rpc: lambda _self, _request, _context: None for rpc in rpcs}
    members |= {"features": frozenset(features), "unadvertised": frozenset(unadvertised)}
    return type(f"My{base}", (BASES[base],), members)


def advertised(server: type[Any]) -> set[str]:
    return set(server.capabilities())


@pytest.mark.parametrize("service", list(RULES))
def test_the_tables_know_every_capability_of_the_spec(service: str) -> None:
    rules = RULES[service]
    assert set(rules.methods) | rules.features == set(ENUMS[service].keys()) - {"UNKNOWN"}
    assert not set(rules.methods) & rules.features


@pytest.mark.parametrize("service", list(RULES))
def test_the_tables_name_methods_that_exist(service: str) -> None:
    known = set(csi_pb2.DESCRIPTOR.services_by_name[service].methods_by_name)
    assert {rpc for rpcs in RULES[service].methods.values() for rpc in rpcs} <= known
    assert set().union(*RULES[service].without_capability) <= known


@pytest.mark.parametrize(
    ("service", "capability", "rpcs"),
    [(service, name, sorted(rpcs)) for service, rules in RULES.items() for name, rpcs in rules.methods.items()],
)
def test_a_capability_follows_from_its_methods(service: str, capability: str, rpcs: list[str]) -> None:
    base = advertised(BASES[service])
    needed = ["CreateVolume", "DeleteVolume"] if capability == "CREATE_DELETE_SNAPSHOT" else []
    gained = advertised(made(service, *needed, *rpcs)) - advertised(made(service, *needed))
    assert gained == {capability} - base


HALVES = [
    (service, rpc, sorted(rpcs - {rpc}))
    for service, rules in RULES.items()
    for rpcs in (*rules.methods.values(), *rules.without_capability)
    if len(rpcs) > 1
    for rpc in sorted(rpcs)
]


@pytest.mark.parametrize(("service", "half", "others"), HALVES)
def test_half_a_pair_is_refused_naming_both(service: str, half: str, others: list[str]) -> None:
    with pytest.raises(TypeError) as caught:
        made(service, half)
    assert f"My{service}: {half} without {', '.join(others)}" in str(caught.value)


def test_the_pairs_are_those_of_the_spec() -> None:
    pairs = {(half, *others) for _, half, others in HALVES}
    for pair in (
        ("CreateVolume", "DeleteVolume"),
        ("ControllerPublishVolume", "ControllerUnpublishVolume"),
        ("CreateSnapshot", "DeleteSnapshot"),
        ("NodeStageVolume", "NodeUnstageVolume"),
        ("NodePublishVolume", "NodeUnpublishVolume"),
        ("CreateVolumeGroupSnapshot", "DeleteVolumeGroupSnapshot", "GetVolumeGroupSnapshot"),
    ):
        assert pair in pairs


def test_a_server_without_methods_advertises_nothing() -> None:
    assert advertised(ControllerServer) == set()
    assert advertised(GroupControllerServer) == set()


def test_a_node_server_has_stats_and_condition_from_the_start() -> None:
    assert advertised(NodeServer) == {"GET_VOLUME_STATS", "VOLUME_CONDITION"}


def test_a_driver_with_stats_of_its_own_says_whether_it_reports_the_condition() -> None:
    assert advertised(made("Node", "NodeGetVolumeStats")) == {"GET_VOLUME_STATS"}
    with_condition = made("Node", "NodeGetVolumeStats", features={"VOLUME_CONDITION"})
    assert advertised(with_condition) == {"GET_VOLUME_STATS", "VOLUME_CONDITION"}


def test_features_are_added_to_what_the_methods_show() -> None:
    server = made("Controller", "CreateVolume", "DeleteVolume", features={"CLONE_VOLUME"})
    assert advertised(server) == {"CREATE_DELETE_VOLUME", "CLONE_VOLUME"}


@pytest.mark.parametrize(
    ("service", "rpcs", "feature", "missing"),
    [
        ("Controller", (), "CLONE_VOLUME", "CREATE_DELETE_VOLUME"),
        ("Controller", (), "PUBLISH_READONLY", "PUBLISH_UNPUBLISH_VOLUME"),
        (
            "Controller",
            ("ControllerPublishVolume", "ControllerUnpublishVolume"),
            "LIST_VOLUMES_PUBLISHED_NODES",
            "LIST_VOLUMES (ListVolumes)",
        ),
        ("Controller", ("ListVolumes",), "LIST_VOLUMES_PUBLISHED_NODES", "PUBLISH_UNPUBLISH_VOLUME"),
        ("Controller", ("GetCapacity",), "VOLUME_CONDITION", "GET_VOLUME (ControllerGetVolume) or LIST_VOLUMES"),
    ],
)
def test_a_promise_that_needs_another_capability_is_refused_without_it(
    service: str, rpcs: tuple[str, ...], feature: str, missing: str
) -> None:
    with pytest.raises(TypeError) as caught:
        made(service, *rpcs, features={feature})
    assert f"{feature} needs {missing}" in str(caught.value)


def test_snapshots_need_volumes_to_restore_them_to() -> None:
    with pytest.raises(TypeError, match="CREATE_DELETE_SNAPSHOT needs CREATE_DELETE_VOLUME"):
        made("Controller", "CreateSnapshot", "DeleteSnapshot")


def test_either_of_two_ways_is_enough() -> None:
    assert "VOLUME_CONDITION" in advertised(made("Controller", "ListVolumes", features={"VOLUME_CONDITION"}))
    assert "VOLUME_CONDITION" in advertised(made("Controller", "ControllerGetVolume", features={"VOLUME_CONDITION"}))


@pytest.mark.parametrize("feature", ["CLONE_VOLUMES", "UNKNOWN", ""])
def test_an_unknown_feature_is_refused(feature: str) -> None:
    with pytest.raises(TypeError, match="no such capability"):
        made("Controller", features={feature})


def test_a_capability_with_methods_is_no_feature() -> None:
    with pytest.raises(TypeError, match="comes from the methods"):
        made("Controller", features={"LIST_VOLUMES"})


def test_a_capability_can_be_served_without_being_advertised() -> None:
    rpcs = ("ControllerPublishVolume", "ControllerUnpublishVolume")
    assert advertised(made("Controller", *rpcs, unadvertised={"PUBLISH_UNPUBLISH_VOLUME"})) == set()
    assert advertised(made("Node", unadvertised={"GET_VOLUME_STATS"})) == set()


def test_what_needs_an_unadvertised_capability_is_refused() -> None:
    rpcs = ("ControllerPublishVolume", "ControllerUnpublishVolume")
    with pytest.raises(TypeError, match="PUBLISH_READONLY needs PUBLISH_UNPUBLISH_VOLUME"):
        made("Controller", *rpcs, features={"PUBLISH_READONLY"}, unadvertised={"PUBLISH_UNPUBLISH_VOLUME"})


@pytest.mark.parametrize("name", ["LIST_VOLUMES", "CLONE_VOLUME", "NONSENSE"])
def test_only_what_is_served_can_be_held_back(name: str) -> None:
    with pytest.raises(TypeError, match=f"unadvertised '{name}'"):
        made("Controller", unadvertised={name})


def test_methods_of_a_base_class_count() -> None:
    class WithVolumes(ControllerServer):
        def CreateVolume(self, request: Any, context: Any) -> Any:
            raise NotImplementedError

        def DeleteVolume(self, request: Any, context: Any) -> Any:
            raise NotImplementedError

    class WithClones(WithVolumes):
        features = frozenset({"CLONE_VOLUME"})

    assert advertised(WithClones) == {"CREATE_DELETE_VOLUME", "CLONE_VOLUME"}


def test_an_instance_can_withhold_what_its_configuration_does_not_allow(tmp_path: Path) -> None:
    context = host_context(tmp_path)
    server = made("Controller", "ListVolumes", "GetCapacity")
    assert server(context).advertised() == {"LIST_VOLUMES", "GET_CAPACITY"}
    assert server(context, withheld=frozenset({"LIST_VOLUMES"})).advertised() == {"GET_CAPACITY"}


def test_an_instance_that_would_keep_what_needs_the_withheld_is_refused(tmp_path: Path) -> None:
    context = host_context(tmp_path)
    server = made("Controller", "ListVolumes", features={"VOLUME_CONDITION"})
    with pytest.raises(TypeError, match="VOLUME_CONDITION needs GET_VOLUME"):
        server(context, withheld=frozenset({"LIST_VOLUMES"}))
    assert server(context, withheld=frozenset({"LIST_VOLUMES", "VOLUME_CONDITION"})).advertised() == set()
