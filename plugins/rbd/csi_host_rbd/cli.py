"""``csi-host rbd``: the driver's own commands."""

import sys
from pathlib import Path

import click

from csi_host.errors import CsiError
from csi_host_rbd.devcluster import DEFAULT_DIRECTORY, DevCluster

# The exit code of fsck for "could not look".
_NOT_LOOKED = 2
_NEED_LIBRADOS = ("fsck", "rotate-key")


class _RbdGroup(click.Group):
    """The driver's commands; those that need librados are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return sorted([*super().list_commands(ctx), *_NEED_LIBRADOS])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return one command."""
        if cmd_name not in _NEED_LIBRADOS:
            return super().get_command(ctx, cmd_name)
        try:
            if cmd_name == "fsck":
                from csi_host_rbd.fsck_command import fsck as command  # noqa: PLC0415 (imports librados)
            else:
                from csi_host_rbd.rotate_command import rotate_key as command  # noqa: PLC0415 (imports librados)
        except ImportError as error:
            return _unavailable(cmd_name, str(error))
        return command


def _unavailable(name: str, reason: str) -> click.Command:
    """Return a command that says why it cannot be had; the help of the others is still shown."""

    def fail(words: tuple[str, ...]) -> None:
        del words
        click.echo(f"csi-host: {reason}", err=True)
        sys.exit(_NOT_LOOKED)

    words = click.Argument(["words"], nargs=-1, type=click.UNPROCESSED)
    settings = {"ignore_unknown_options": True}
    return click.Command(name, params=[words], callback=fail, context_settings=settings, short_help="(unavailable)")


@click.group(cls=_RbdGroup)
def rbd() -> None:
    """Commands of the rbd driver."""


@rbd.group("dev-cluster")
def dev_cluster() -> None:
    """A one-node Ceph on this machine, for development and for trying the driver out."""


_directory = click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_DIRECTORY,
    show_default=True,
    help="Where all of the cluster is kept.",
)


@dev_cluster.command()
@_directory
@click.option(
    "--persist",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep the cluster in this directory instead, on disk (bluestore), so that its data outlives `down`.",
)
def up(directory: Path, persist: Path | None) -> None:
    """Start the cluster; fine when it runs already."""
    cluster = DevCluster(persist or directory, persist=persist is not None)
    try:
        cluster.up(lambda step: click.echo(f"  {step}", err=True))
    except CsiError as error:
        raise click.ClickException(str(error)) from error
    _describe(cluster)


@dev_cluster.command()
@_directory
def status(directory: Path) -> None:
    """Say what runs; exit code 1 when the cluster is not up."""
    cluster = DevCluster(directory)
    for daemon in cluster.daemons():
        click.echo(f"{daemon.program}  pid {daemon.pid}")
    if not cluster.is_up():
        raise click.ClickException(f"the cluster in {cluster.directory} is not up")
    _describe(cluster)


@dev_cluster.command()
@_directory
@click.option("--purge", is_flag=True, help="Remove the data of a --persist cluster too.")
def down(directory: Path, *, purge: bool) -> None:
    """Stop the cluster and remove what it kept; fine when nothing is there, also after a crash."""
    try:
        DevCluster(directory).down(purge=purge)
    except CsiError as error:
        raise click.ClickException(str(error)) from error


def _describe(cluster: DevCluster) -> None:
    click.echo(f"administrate with      ceph --conf {cluster.ceph_conf} status")
    click.echo(f"serve with             csi-host --driver rbd --cephcsiconfig {cluster.clusters_file} …")
    click.echo(f"call with              csi-host call --secrets {cluster.secret_file} …")
    click.echo(f"StorageClass           clusterID: {cluster.cluster_id}, pool: {cluster.pool}")
