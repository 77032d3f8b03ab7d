"""What a measurement runs on: a one-node Ceph, csi-host, and a worker for each side."""

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from csi_host.testing.host_process import HostProcess, serving
from csi_host_rbd import devcluster
from csi_host_rbd.devcluster import DevCluster

from .callers import Called
from .worker import Worker, working

_TRASH_SECONDS = 1800.0
_PAUSE_SECONDS = 0.2


class CallsFailedError(click.ClickException):
    """Calls failed that must not: what the figures say would be about something else."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A cluster with a driver; ``driver`` calls the RPCs, ``bare`` librbd."""

    cluster: DevCluster
    host: HostProcess
    driver: Worker
    bare: Worker

    def rpc(self, action: str, items: Sequence[Any], *, callers: int = 1) -> Called:
        """Have the driver called; raises CallsFailedError unless every call succeeds."""
        return _all_succeeded(f"RPC {action}", self.driver.call_all(action, items, callers=callers))

    def librbd(self, action: str, items: Sequence[Any], *, callers: int = 1) -> Called:
        """Have librbd called; raises CallsFailedError unless every call succeeds."""
        return _all_succeeded(f"librbd {action}", self.bare.call_all(action, items, callers=callers))

    def capabilities(self) -> frozenset[str]:
        """Return what the controller says it can do."""
        (names,) = self.rpc("capabilities", [None]).answers
        return frozenset(names)

    def settle(self) -> float:
        """Wait until the manager has nothing left to remove, so that it works in no measurement; return the seconds."""
        began = time.monotonic()
        self.librbd("empty_trash", [None])
        while (left := len(self.librbd("trash", [None]).answers[0])) > 0:
            if time.monotonic() - began > _TRASH_SECONDS:
                raise CallsFailedError(f"{left} images are still in the trash after {_TRASH_SECONDS:g} s")
            time.sleep(_PAUSE_SECONDS)
        return time.monotonic() - began

    def objects(self) -> set[str]:
        """Return the pool's objects and keys."""
        return set(self.librbd("objects", [None]).answers[0])

    def daemon(self, program: str) -> int:
        """Return the process id of the cluster's ``ceph-osd`` or ``ceph-mgr``."""
        return next(daemon.pid for daemon in self.cluster.daemons() if daemon.program == program)


@contextmanager
def prepared(output: Path) -> Iterator[Place]:
    """A cluster and a driver of their own for the length of the ``with``; the driver's log goes to ``output``."""
    with ExitStack() as stack:
        # Short, as a socket's path must be.
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="csi-bench-")))
        cluster = stack.enter_context(devcluster.running(directory / "c"))
        host = stack.enter_context(_serving(cluster, directory, output))
        parameters = {"clusterID": cluster.cluster_id, "pool": cluster.pool, "imageFeatures": "layering"}
        driver = working("rpc_worker", host.endpoint, str(cluster.secret_file), json.dumps(parameters))
        bare = working("bare_worker", str(cluster.directory), cluster.pool)
        yield Place(cluster=cluster, host=host, driver=stack.enter_context(driver), bare=stack.enter_context(bare))


@contextmanager
def _serving(cluster: DevCluster, directory: Path, output: Path) -> Iterator[HostProcess]:
    arguments = [
        "--driver=rbd",
        "--nodeid=bench",
        "--controllerserver",
        f"--cephcsiconfig={cluster.clusters_file}",
        # For the calls that bring no secret, ListVolumes for one.
        f"--controllersecret={cluster.secret_file}",
        f"--qemudirectory={directory / 'qemu'}",
        f"--stagingpath={directory / 'staging'}",
    ]
    with serving(arguments, socket=directory / "csi.sock", log_file=output / "csi-host.log") as host:
        yield host


def _all_succeeded(what: str, called: Called) -> Called:
    if called.errors:
        raise CallsFailedError(f"{what}: {len(called.errors)} calls failed, the first with {called.errors[0]}")
    return called
