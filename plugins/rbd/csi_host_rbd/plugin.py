"""What the rbd driver registers; librados is imported only when it is created."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import click

from csi_host.driver import Driver, DriverType, HostContext
from csi_host.hookspecs import hookimpl
from csi_host.kms import KmsType
from csi_host.node.stats import VolumeStats
from csi_host_rbd.encryption.providers import built_in_kms_types
from csi_host_rbd.options import OPTIONS


def _create(context: HostContext) -> Driver:
    from csi_host_rbd.driver import create_driver  # noqa: PLC0415 (imports librados, which only this driver needs)

    return create_driver(context)


@hookimpl
def csi_host_register_driver() -> DriverType:
    """Return the rbd driver's type."""
    return DriverType(
        name="rbd",
        summary="Ceph RBD images as volumes, on disk compatible with ceph-csi",
        default_driver_name="rbd.csi.ceph.com",
        create=_create,
        options=OPTIONS,
    )


@hookimpl
def csi_host_kms_providers() -> Sequence[KmsType]:
    """Return the KMS types that need nothing but a secret, or a Vault server."""
    return built_in_kms_types()


@hookimpl(wrapper=True)
def csi_host_volume_stats(volume_path: Path) -> Generator[None, VolumeStats | None, VolumeStats | None]:
    """Add to another plugin's answer what only the daemon of a volume knows."""
    from csi_host_rbd.node.waits import why_waiting  # noqa: PLC0415 (keeps the start of every other command short)

    stats = yield
    if stats is None or stats.abnormal:
        return stats
    why = why_waiting(volume_path)
    return replace(stats, abnormal=True, message=why) if why else stats


@hookimpl
def csi_host_commands() -> Sequence[click.Command]:
    """Return ``csi-host rbd``."""
    from csi_host_rbd.cli import rbd  # noqa: PLC0415 (keeps the start of every other command short)

    return [rbd]


@hookimpl
def csi_host_serving(context: HostContext, driver: Driver) -> None:
    """Begin to look after the devices of this node whose daemons may die."""
    from csi_host_rbd.node.healer import RbdDriver  # noqa: PLC0415 (keeps the start of every other command short)

    if context.serves_node and isinstance(driver, RbdDriver):
        driver.healer.start()


@hookimpl
def csi_host_versions() -> Mapping[str, str]:
    """Return the versions of librados and librbd."""
    from csi_host_rbd.ceph.bindings import rados, rbd  # noqa: PLC0415 (nothing else of --version needs them)

    return {"librados": str(rados.Rados().version()), "librbd": ".".join(map(str, rbd.RBD().version()))}
