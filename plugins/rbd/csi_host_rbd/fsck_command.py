"""``csi-host rbd fsck``."""

import platform
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import click

from csi_host.cli.message_text import TextError, read_map
from csi_host.durations import parse_duration
from csi_host.errors import CsiError
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.connections import Connections, Timeouts
from csi_host_rbd.ceph.leases import LeaseCheck
from csi_host_rbd.ceph.registries import namespaces
from csi_host_rbd.ceph.writes import Writes
from csi_host_rbd.clusters import ClusterConfig, Clusters
from csi_host_rbd.credentials import Credentials
from csi_host_rbd.fsck.classes import CLASSES
from csi_host_rbd.fsck.findings import LockKeys
from csi_host_rbd.fsck.fsck import Fsck, Report, Wishes
from csi_host_rbd.fsck.look import Look
from csi_host_rbd.fsck.output import as_json, as_table, classes_table
from csi_host_rbd.options import OPTIONS
from csi_host_rbd.shared_locks import RadosLocks

T = TypeVar("T")

_FINDINGS, _NOT_LOOKED = 1, 2
_DEFAULTS = {option.name: option.default for option in OPTIONS}

_HELP = """Find what the journal, images, snapshots, trash and groups of a pool do not agree on.

Nothing is changed without --repair, and nothing that holds data is removed without --remove-data as well. It is made to
run beside controllers: what is younger than --min-age is left alone, as it may be a call at work.

\b
    csi-host rbd fsck --clusterid ceph-a --pool rbd --secrets secret.yaml
    csi-host rbd fsck --monitors 10.0.0.1,10.0.0.2 --pool rbd --all-namespaces --secrets secret.yaml --output json
    csi-host rbd fsck --clusterid ceph-a --pool rbd --secrets secret.yaml --repair --only image-missing
    csi-host rbd fsck --list-classes

The exit code is 0 when nothing is wrong (any more), 1 when there are findings, 2 when it was not possible to look.
"""


@dataclass(frozen=True, kw_only=True)
class _Target:
    """What to look at: a cluster, a pool and its namespaces; ``namespace`` is None for the configured one."""

    cluster: ClusterConfig
    pool: str
    namespace: str | None
    is_all: bool
    journal_pools: Sequence[str]


def _duration(_context: click.Context, _parameter: click.Parameter, text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _list_classes(context: click.Context, _parameter: click.Parameter, is_asked: bool) -> None:
    if is_asked:
        click.echo(classes_table())
        context.exit()


@click.command(help=_HELP)
@click.option("--clusterid", metavar="ID", help="The cluster, as in --cephcsiconfig.")
@click.option("--monitors", metavar="LIST", help="The monitors, where there is no such file.")
@click.option(
    "--cephcsiconfig",
    type=click.Path(path_type=Path, dir_okay=False),
    default=_DEFAULTS["cephcsiconfig"],
    show_default=True,
    help="The JSON file that lists the Ceph clusters.",
)
@click.option(
    "--cephconf",
    type=click.Path(path_type=Path, dir_okay=False),
    default=_DEFAULTS["cephconf"],
    show_default=True,
    help="A ceph.conf that librados reads when it exists.",
)
@click.option(
    "--secrets",
    type=click.Path(dir_okay=False, allow_dash=True),
    required=True,
    help="Read userID and userKey, as JSON or YAML, from a file, - for stdin.",
)
@click.option("--pool", required=True, help="The pool to look at.")
@click.option("--namespace", metavar="NAME", help="Its RADOS namespace; without it, the cluster's radosNamespace.")
@click.option("--all-namespaces", is_flag=True, help="Look at every RADOS namespace of the pool.")
@click.option(
    "--journal-pool",
    multiple=True,
    metavar="POOL",
    help="Another pool that has the journal of volumes in this one (topology with ceph-csi v3.0 to v3.10).",
)
@click.option("--instanceid", default="default", show_default=True, help="The instance id of the controllers.")
@click.option("--repair", is_flag=True, help="Mend what is found; every finding is looked at again first.")
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(list(CLASSES)),
    metavar="CLASS",
    help="Look for this class alone; may be repeated.",
)
@click.option("--remove-data", is_flag=True, help="With --repair: also remove what may hold data that is wanted.")
@click.option(
    "--min-age",
    default="1h",
    show_default=True,
    callback=_duration,
    help="Leave alone what is younger; no controller may run when this is shorter than a call can last.",
)
@click.option("--settle", default="3s", show_default=True, callback=_duration, help="When to look a second time.")
@click.option("--skip-objects", is_flag=True, help="Do not list all objects of the pool: orphans are not found then.")
@click.option("--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.option(
    "--list-classes",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_classes,
    help="Print what can be found, and look at nothing.",
)
def fsck(
    *,
    clusterid: str | None,
    monitors: str | None,
    cephcsiconfig: Path,
    cephconf: Path,
    secrets: str,
    pool: str,
    namespace: str | None,
    all_namespaces: bool,
    journal_pool: Sequence[str],
    instanceid: str,
    repair: bool,
    only: Sequence[str],
    remove_data: bool,
    min_age: float,
    settle: float,
    skip_objects: bool,
    output: str,
) -> None:
    """Look, tell, and end with the exit code; --help is made of _HELP."""
    if bool(clusterid) == bool(monitors):
        raise click.UsageError("Give either --clusterid or --monitors.")
    if namespace is not None and all_namespaces:
        raise click.UsageError("Give either --namespace or --all-namespaces.")
    if remove_data and not (repair and only):
        raise click.UsageError("--remove-data goes with --repair, and --only for what is to be removed.")
    wishes = Wishes(
        only=frozenset(only),
        repairs=repair,
        removes_data=remove_data,
        min_age=min_age,
        settle=settle,
        lists_objects=not skip_objects,
    )
    with _failures():
        cluster = _cluster(clusterid, monitors, cephcsiconfig)
        target = _Target(
            cluster=cluster, pool=pool, namespace=namespace, is_all=all_namespaces, journal_pools=journal_pool
        )
        reports = _check(target, _credentials(secrets), wishes, instance_id=instanceid, ceph_conf=cephconf)
    click.echo(as_json(reports) if output == "json" else as_table(reports))
    sys.exit(_exit_code(reports))


def _cluster(cluster_id: str | None, monitors: str | None, path: Path) -> ClusterConfig:
    if cluster_id:
        return Clusters(path).find(cluster_id)
    return ClusterConfig(cluster_id="", monitors=tuple((monitors or "").split(",")))


def _credentials(path: str) -> Credentials:
    try:
        with click.open_file(path, encoding="utf-8") as file:
            return Credentials.from_secrets(read_map(file.read(), "secrets"))
    except OSError as error:
        raise TextError(f"secrets: {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TextError(f"secrets: {path} is not UTF-8 text") from error


def _check(
    target: _Target,
    credentials: Credentials,
    wishes: Wishes,
    *,
    instance_id: str,
    ceph_conf: Path,
) -> list[Report]:
    connections = Connections(timeouts=Timeouts(), ceph_conf=ceph_conf, writes=Writes(LeaseCheck()))
    # Controllers with locks of their own memory do not see these, and lose nothing by them.
    locks = RadosLocks(instance_id=instance_id, node=platform.node(), lease_seconds=_DEFAULTS["locklease"])

    def hold(pool: Pool, wanted: LockKeys) -> AbstractContextManager[object]:
        return locks.hold(pool, *wanted.keys, noun=wanted.noun)

    try:
        with connections.use(target.cluster.mon_host, credentials) as connection:
            pool = connection.pool(target.pool, target.cluster.rados_namespace)
            reports = []
            for namespace in _namespaces(target, pool):
                look = Look(
                    pool=connection.pool(target.pool, namespace),
                    connection=connection,
                    instance_id=instance_id,
                    cluster_id=target.cluster.cluster_id,
                    manager_timeout=_DEFAULTS["cephmgrtimeout"],
                    journal_pools=tuple(connection.pool(name, namespace) for name in target.journal_pools),
                )
                reports.append(Fsck(look, wishes, progress=_Bar(), hold=hold).run())
            return reports
    finally:
        locks.close()
        connections.close()


def _namespaces(target: _Target, pool: Pool) -> list[str]:
    if target.is_all:
        return ["", *namespaces(pool)]
    return [target.cluster.rados_namespace if target.namespace is None else target.namespace]


def _exit_code(reports: Sequence[Report]) -> int:
    if any(report.unread for report in reports):
        return _NOT_LOOKED
    return _FINDINGS if any(report.left for report in reports) else 0


@contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except (CsiError, TextError) as error:
        click.echo(f"csi-host: {error}", err=True)
        sys.exit(_NOT_LOOKED)
    except KeyboardInterrupt:
        sys.exit(_NOT_LOOKED)
    except Exception:  # noqa: BLE001 (the interpreter would end with 1, which means findings)
        traceback.print_exc()
        sys.exit(_NOT_LOOKED)


class _Bar:
    """A progress bar on standard error, where that is a terminal."""

    def over(self, label: str, pages: Iterator[T], size: Callable[[T], int], total: int | None) -> Iterator[T]:
        """Pass the pages on."""
        if not sys.stderr.isatty():
            yield from pages
            return
        with click.progressbar(length=total or 0, label=label, file=sys.stderr, show_eta=bool(total)) as bar:
            for page in pages:
                yield page
                bar.update(size(page))
