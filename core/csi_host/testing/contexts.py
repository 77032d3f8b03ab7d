from dataclasses import replace
from pathlib import Path
from typing import Any

from csi_host.driver import HostContext
from csi_host.errors import NotFound
from csi_host.locks import OperationLocks, SnapshotLocks, VolumeLocks
from csi_host.node.stats import VolumeStats
from csi_host.testing.runner import ScriptedRunner


def host_context(directory: Path, **overrides: Any) -> HostContext:
    """Return what a host gives a driver, for a test: both services, everything below ``directory``.

    No program is installed and no volume is mounted unless ``run`` and ``volume_stats`` are given. Any field of
    HostContext can be overridden.
    """
    context = HostContext(
        driver_name="test.csi.example",
        node_id="node-a",
        instance_id="default",
        cluster_name="",
        set_metadata=False,
        plugin_path=directory / "plugins",
        staging_path=directory / "staging",
        serves_controller=True,
        serves_node=True,
        topology={},
        options={},
        volume_locks=VolumeLocks(),
        snapshot_locks=SnapshotLocks(),
        operation_locks=OperationLocks(),
        run=ScriptedRunner(),
        volume_stats=_nothing_is_mounted,
    )
    return replace(context, **overrides)


def _nothing_is_mounted(volume_path: Path) -> VolumeStats:
    raise NotFound(f"volume_path: nothing is mounted at {volume_path}")
