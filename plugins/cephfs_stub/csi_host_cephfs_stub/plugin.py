"""What the CephFS stub registers: a node's view of CephFS volumes, and nothing that makes or mounts them."""

from collections.abc import Mapping
from pathlib import Path

from csi_host.driver import Driver, DriverType, HostContext
from csi_host.hookspecs import hookimpl
from csi_host.node.stats import VolumeStats
from csi_host_cephfs_stub.cephfs import library_version
from csi_host_cephfs_stub.quota import QuotaStats


def _create(context: HostContext) -> Driver:
    from csi_host.services.node import NodeServer  # noqa: PLC0415  the servers are loaded for the driver that is served

    # The host's own Node service is all there is, so its capabilities are all that is advertised.
    return Driver(node=NodeServer(context))


@hookimpl
def csi_host_register_driver() -> DriverType:
    """Return the stub's type."""
    return DriverType(
        name="cephfs",
        summary="A stub: node information and usage of mounted CephFS volumes; it neither makes nor mounts any",
        default_driver_name="cephfs.csi.ceph.com",
        create=_create,
    )


@hookimpl
def csi_host_volume_stats(volume_path: Path) -> VolumeStats | None:
    """Return the usage against the quota, for a CephFS directory that has one."""
    return QuotaStats()(volume_path)


@hookimpl
def csi_host_versions() -> Mapping[str, str]:
    """Return the version of libcephfs."""
    return {"libcephfs": library_version()}
