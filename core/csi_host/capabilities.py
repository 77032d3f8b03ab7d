"""What a server may say it can do: the RPC methods behind each capability, and what each capability needs.

The names are those of the enums in csi.proto; the needs are the spec's "MUST also support".
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Rules:
    """One service's capabilities.

    ``methods`` names the RPCs that make a capability: all of them or none. ``without_capability`` are sets of RPCs that
    belong together but are not advertised. ``features`` are capabilities that no method shows. ``needs`` says for a
    capability which others must be advertised: each inner set is an either-or.
    """

    service: str
    methods: Mapping[str, frozenset[str]]
    without_capability: tuple[frozenset[str], ...] = ()
    features: frozenset[str] = frozenset()
    needs: Mapping[str, tuple[frozenset[str], ...]] = field(default_factory=dict)

    def advertised_by(self, server: type[Any]) -> frozenset[str]:
        """Return the capabilities of a server class."""
        shown = frozenset(name for name, rpcs in self.methods.items() if all(serves(server, rpc) for rpc in rpcs))
        unadvertised: frozenset[str] = server.unadvertised
        features: frozenset[str] = server.features
        return (shown - unadvertised) | features

    def check(self, server: type[Any]) -> None:
        """Raise TypeError when a server class has half of a pair, or promises what it cannot keep."""
        self._check_halves(server)
        self._check_names(server)
        self.check_needs(server.__name__, self.advertised_by(server))

    def check_needs(self, server_name: str, advertised: frozenset[str]) -> None:
        """Raise TypeError when one of the ``advertised`` capabilities needs another that is not among them."""
        for name in sorted(advertised):
            for either in self.needs.get(name, ()):
                if not either & advertised:
                    raise TypeError(f"{server_name}: {name} needs {self._how_to_have(either)} as well")

    def _check_halves(self, server: type[Any]) -> None:
        for rpcs in (*self.methods.values(), *self.without_capability):
            served = {rpc for rpc in rpcs if serves(server, rpc)}
            if served and served != rpcs:
                raise TypeError(
                    f"{server.__name__}: {_listed(served)} without {_listed(rpcs - served)}; both halves are needed"
                )

    def _check_names(self, server: type[Any]) -> None:
        for name in sorted(server.features - self.features):
            why = "it comes from the methods that are served" if name in self.methods else "no such capability"
            raise TypeError(f"{server.__name__}: feature {name!r}: {why}; features are {_listed(self.features)}")
        for name in sorted(server.unadvertised):
            if not all(serves(server, rpc) for rpc in self.methods.get(name, {""})):
                raise TypeError(
                    f"{server.__name__}: unadvertised {name!r}: expected a capability whose methods are served"
                )

    def _how_to_have(self, either: Iterable[str]) -> str:
        return " or ".join(
            f"{name} ({_listed(self.methods[name])})" if name in self.methods else name for name in sorted(either)
        )


def serves(server: type[Any], rpc: str) -> bool:
    """Whether a server class has a method of its own for an RPC, and not the one that answers UNIMPLEMENTED."""
    method = getattr(server, rpc, None)
    return method is not None and not getattr(method, "answers_unimplemented", False)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


CONTROLLER = Rules(
    service="Controller",
    methods={
        "CREATE_DELETE_VOLUME": frozenset({"CreateVolume", "DeleteVolume"}),
        "PUBLISH_UNPUBLISH_VOLUME": frozenset({"ControllerPublishVolume", "ControllerUnpublishVolume"}),
        "LIST_VOLUMES": frozenset({"ListVolumes"}),
        "GET_CAPACITY": frozenset({"GetCapacity"}),
        "CREATE_DELETE_SNAPSHOT": frozenset({"CreateSnapshot", "DeleteSnapshot"}),
        "LIST_SNAPSHOTS": frozenset({"ListSnapshots"}),
        "EXPAND_VOLUME": frozenset({"ControllerExpandVolume"}),
        "GET_VOLUME": frozenset({"ControllerGetVolume"}),
        "MODIFY_VOLUME": frozenset({"ControllerModifyVolume"}),
        "GET_SNAPSHOT": frozenset({"GetSnapshot"}),
    },
    features=frozenset(
        {
            "CLONE_VOLUME",
            "PUBLISH_READONLY",
            "LIST_VOLUMES_PUBLISHED_NODES",
            "VOLUME_CONDITION",
            "SINGLE_NODE_MULTI_WRITER",
        }
    ),
    needs={
        "CLONE_VOLUME": (frozenset({"CREATE_DELETE_VOLUME"}),),
        "CREATE_DELETE_SNAPSHOT": (frozenset({"CREATE_DELETE_VOLUME"}),),
        "PUBLISH_READONLY": (frozenset({"PUBLISH_UNPUBLISH_VOLUME"}),),
        "LIST_VOLUMES_PUBLISHED_NODES": (frozenset({"LIST_VOLUMES"}), frozenset({"PUBLISH_UNPUBLISH_VOLUME"})),
        "VOLUME_CONDITION": (frozenset({"LIST_VOLUMES", "GET_VOLUME"}),),
    },
)

NODE = Rules(
    service="Node",
    methods={
        "STAGE_UNSTAGE_VOLUME": frozenset({"NodeStageVolume", "NodeUnstageVolume"}),
        "GET_VOLUME_STATS": frozenset({"NodeGetVolumeStats"}),
        "EXPAND_VOLUME": frozenset({"NodeExpandVolume"}),
    },
    without_capability=(frozenset({"NodePublishVolume", "NodeUnpublishVolume"}),),
    features=frozenset({"VOLUME_CONDITION", "SINGLE_NODE_MULTI_WRITER", "VOLUME_MOUNT_GROUP"}),
    needs={"VOLUME_CONDITION": (frozenset({"GET_VOLUME_STATS"}),)},
)

GROUP_CONTROLLER = Rules(
    service="GroupController",
    methods={
        "CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT": frozenset(
            {"CreateVolumeGroupSnapshot", "DeleteVolumeGroupSnapshot", "GetVolumeGroupSnapshot"}
        ),
    },
)

# The service has no capabilities RPC: the plugin capability SNAPSHOT_METADATA_SERVICE stands for all of it.
SNAPSHOT_METADATA = Rules(service="SnapshotMetadata", methods={})
