"""What a driver gives the host and what the host gives a driver."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from csi_host.kms import KmsTypes
from csi_host.locks import OperationLocks, SnapshotLocks, VolumeLocks
from csi_host.node.stats import VolumeStats
from csi_host.process import Runner

if TYPE_CHECKING:
    from csi_host.services.controller import ControllerServer
    from csi_host.services.group_controller import GroupControllerServer
    from csi_host.services.node import NodeServer
    from csi_host.services.snapshot_metadata import SnapshotMetadataServer


@dataclass(frozen=True, kw_only=True)
class DriverOption:
    """A setting that only this driver has: a flag ``--name``, an environment variable and a configuration-file key.

    ``parse`` turns the text of a flag, variable or key into the value and raises ValueError, whose text is shown,
    when it cannot. ``default`` is the value itself, not text.
    """

    name: str
    help: str
    default: Any
    parse: Callable[[str], Any] = str
    metavar: str = "TEXT"


@dataclass(frozen=True, kw_only=True)
class HostContext:
    """Everything a driver gets from the host; there is no other way to the host's state."""

    driver_name: str
    node_id: str
    instance_id: str
    cluster_name: str
    set_metadata: bool
    plugin_path: Path
    staging_path: Path
    serves_controller: bool
    serves_node: bool
    topology: Mapping[str, str]
    options: Mapping[str, Any]
    volume_locks: VolumeLocks
    snapshot_locks: SnapshotLocks
    operation_locks: OperationLocks
    run: Runner
    volume_stats: Callable[[Path], VolumeStats]
    kms_types: KmsTypes = field(default_factory=KmsTypes)
    node_labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Driver:
    """A driver's servers; None for a service it does not have.

    A server may be given although the mode does not serve it: the host registers only what the mode asks for.
    ``close`` is called once, after the last RPC was answered; not when the process ends with RPCs unfinished.
    """

    controller: "ControllerServer | None" = None
    node: "NodeServer | None" = None
    group_controller: "GroupControllerServer | None" = None
    snapshot_metadata: "SnapshotMetadataServer | None" = None
    close: Callable[[], None] = field(default=lambda: None)


@dataclass(frozen=True, kw_only=True)
class DriverType:
    """What ``--driver NAME`` names: cheap to make, imports no backend; ``create`` does.

    ``default_driver_name`` is what GetPluginInfo answers when ``--drivername`` is not given.
    """

    name: str
    summary: str
    default_driver_name: str
    create: Callable[[HostContext], Driver]
    options: Sequence[DriverOption] = ()
