"""``csi-host rbd rotate-key``."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from csi_host.cli.message_text import TextError, read_map
from csi_host.driver import HostContext
from csi_host.errors import CsiError, Internal
from csi_host.locks import OperationLocks, SnapshotLocks, VolumeLocks
from csi_host.node.stats import volume_stats
from csi_host.plugins import Plugins
from csi_host.process import run
from csi_host_rbd.driver import create_driver
from csi_host_rbd.node.server import RbdNodeServer
from csi_host_rbd.options import OPTIONS

F = TypeVar("F", bound=Callable[..., Any])

_DEFAULTS = {option.name: option.default for option in OPTIONS}

_HELP = """Give an encrypted volume another passphrase, on a node where it is staged, while it is used.

The data is not encrypted anew: what changes is the passphrase that opens the volume's LUKS header, in the header and in
the KMS. That needs a KMS that keeps a passphrase for each volume (metadata, vault); the default one, whose passphrase
is in the StorageClass' secret, is refused. ceph-csi does it in the same steps and under the same lock.

Cut off anywhere, the volume opens with the passphrase that the KMS has; call it again then. After a kill that is
refused for three minutes, until the lock has run out. Do not clone or snapshot the volume at the same time: the copy
may get the one passphrase and the header of the other, and has to be made again.

\b
    csi-host rbd rotate-key --volume-id 0001-… --secret-file secret.yaml

The exit code is 0 when the passphrase was changed, 1 when it was not, with the reason on standard error.
"""


def _file(name: str, text: str) -> Callable[[F], F]:
    kind = click.Path(path_type=Path)
    return click.option(f"--{name}", type=kind, default=_DEFAULTS[name], show_default=True, help=text)


@click.command("rotate-key", help=_HELP)
@click.option("--volume-id", required=True, metavar="ID", help="The volume's handle.")
@click.option(
    "--secret-file",
    type=click.Path(dir_okay=False, allow_dash=True),
    required=True,
    help="Read what NodeStageVolume gets as secrets, as JSON or YAML, from a file, - for stdin.",
)
@click.option("--instanceid", default="default", show_default=True, help="The instance id of the controllers.")
@_file("cephcsiconfig", "The JSON file that lists the Ceph clusters.")
@_file("clustermapping", "The JSON file that pairs the clusters and pools of two sites.")
@_file("kmsconfig", "The JSON file with the key management systems.")
@_file("cephconf", "A ceph.conf that librados reads when it exists.")
@_file("qemudirectory", "Where the qemu mounter of this node's csi-host keeps its files.")
def rotate_key(*, volume_id: str, secret_file: str, instanceid: str, **files: Path) -> None:
    """Change the passphrase; --help is made of _HELP."""
    try:
        with click.open_file(secret_file, encoding="utf-8") as file:
            secrets = read_map(file.read(), "secrets")
        _rotate(_context(instanceid, files), volume_id, secrets)
    except (CsiError, TextError) as error:
        click.echo(f"csi-host: {error}", err=True)
        sys.exit(1)
    except (OSError, UnicodeDecodeError) as error:
        click.echo(f"csi-host: {secret_file} cannot be read: {type(error).__name__}", err=True)
        sys.exit(1)
    click.echo(f"volume {volume_id} has another passphrase")


def _rotate(context: HostContext, volume_id: str, secrets: dict[str, str]) -> None:
    driver = create_driver(context)
    try:
        if not isinstance(driver.node, RbdNodeServer):
            raise Internal("the rbd driver has no node service")
        driver.node.key_rotation.rotate(volume_id, secrets)
    finally:
        driver.close()


def _context(instance_id: str, files: dict[str, Path]) -> HostContext:
    return HostContext(
        driver_name="rbd.csi.ceph.com",
        node_id="",
        instance_id=instance_id,
        cluster_name="",
        set_metadata=False,
        plugin_path=Path(),
        staging_path=Path(),
        serves_controller=False,
        serves_node=True,
        topology={},
        options=_DEFAULTS | files,
        volume_locks=VolumeLocks(),
        snapshot_locks=SnapshotLocks(),
        operation_locks=OperationLocks(),
        run=run,
        volume_stats=volume_stats,
        kms_types=Plugins().kms_types(),
    )
