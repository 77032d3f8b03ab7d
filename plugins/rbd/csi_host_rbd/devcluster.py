"""A real one-node Ceph (a monitor, a manager, an OSD) for development, tests and trying the driver out.

All of it is below one directory, which has a marker file. ``down`` finds the daemons by the configuration file in their
command lines, so it also clears up after a crash of ``up`` or of a daemon, and never touches anybody else's.
"""

import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from csi_host.errors import FailedPrecondition, Unavailable
from csi_host.process import ProcessError, Runner, run
from csi_host_common_node.programs import require
from csi_host_rbd import devmanager
from csi_host_rbd.devconfiguration import configuration
from csi_host_rbd.devdaemons import DAEMONS, Daemon, Daemons

DEFAULT_DIRECTORY = Path("/run/csi-host/dev-cluster")
CLUSTER_ID = "dev"
USER = "csi"
POOL = "rbd"

_MARKER = ".csi-host-dev-cluster"
_PROGRAMS = ("ceph", "ceph-authtool", "ceph-mgr", "ceph-mon", "ceph-osd", "monmaptool", "rbd")
# Enough also where every instruction is interpreted, as in a virtual machine without KVM.
_COMMAND_SECONDS = 180.0
_READY_SECONDS = 300.0
_MAX_DIRECTORY_LENGTH = 70


class DevClusterError(FailedPrecondition):
    """The cluster cannot be started or stopped; the message says why and where its logs are."""


class DevCluster:
    """The cluster in ``directory``; with ``persist`` its data is kept on disk (bluestore) and survives ``down``."""

    cluster_id = CLUSTER_ID
    pool = POOL
    user = USER

    def __init__(
        self, directory: Path = DEFAULT_DIRECTORY, *, persist: bool = False, run_program: Runner = run
    ) -> None:
        self.directory = directory.absolute()
        self.persist = persist
        self._run = run_program
        self._daemons = Daemons(self.ceph_conf)

    @property
    def ceph_conf(self) -> Path:
        """The administrator's configuration; its keyring lies beside it."""
        return self.directory / "ceph.conf"

    @property
    def clusters_file(self) -> Path:
        """The driver's ``config.json``."""
        return self.directory / "config.json"

    @property
    def secret_file(self) -> Path:
        """The user and key of the driver, as ``csi-host call --secrets`` reads them."""
        return self.directory / "secret.json"

    @property
    def monitors(self) -> list[str]:
        """The monitors' addresses, as in ``config.json``."""
        clusters = json.loads(self.clusters_file.read_text(encoding="utf-8"))
        return [str(monitor) for monitor in clusters[0]["monitors"]]

    def secrets(self) -> dict[str, str]:
        """Return the driver's secret: userID and userKey."""
        secrets: dict[str, str] = json.loads(self.secret_file.read_text(encoding="utf-8"))
        return secrets

    def up(self, report: Callable[[str], None] = lambda _: None) -> None:
        """Start the cluster, or what of it does not run; fine when all of it does. Raises DevClusterError."""
        require(_PROGRAMS)
        if self.is_up():
            report("the cluster is up already")
            return
        # The daemons' sockets are below it, and a socket's path has 107 bytes at the most.
        if len(str(self.directory)) > _MAX_DIRECTORY_LENGTH:
            raise DevClusterError(
                f"{self.directory}: expected a path of {_MAX_DIRECTORY_LENGTH} characters at the most"
            )
        self._claim_directory()
        try:
            self._start(report)
        except (ProcessError, Unavailable) as error:
            raise DevClusterError(
                f"the cluster did not come up: {error}; its logs are in {self.directory}/log"
            ) from error

    def is_up(self) -> bool:
        """Whether all three daemons run and the driver's files are written."""
        return self.secret_file.is_file() and {daemon.program for daemon in self.daemons()} == set(DAEMONS)

    def down(self, *, purge: bool = False) -> None:
        """Stop the daemons and remove the directory; the data of a persistent cluster only with ``purge``."""
        self._daemons.stop()
        marker = self.directory / _MARKER
        if not marker.is_file():
            return
        if purge or marker.read_text(encoding="utf-8") != "persist":
            shutil.rmtree(self.directory)

    def daemons(self) -> list[Daemon]:
        """Return the daemons that run with this cluster's configuration file, found in /proc."""
        return self._daemons.running()

    def stop_osd(self) -> None:
        """Suspend the OSD (SIGSTOP): the cluster hangs, as it does when the network or the disks do."""
        self._daemons.suspend("ceph-osd")

    def resume_osd(self) -> None:
        """Let the OSD go on (SIGCONT)."""
        self._daemons.resume("ceph-osd")

    def stop_manager(self) -> None:
        """Suspend the manager (SIGSTOP)."""
        self._daemons.suspend("ceph-mgr")

    def resume_manager(self) -> None:
        """Let the manager go on (SIGCONT)."""
        self._daemons.resume("ceph-mgr")

    def create_pool(self, name: str) -> None:
        """Make a pool for images."""
        self.ceph("osd", "pool", "create", name, "8")
        self.rbd("pool", "init", name)

    def delete_pool(self, name: str) -> None:
        """Delete a pool and what is in it."""
        self.ceph("osd", "pool", "rm", name, name, "--yes-i-really-really-mean-it")

    def ceph(self, *arguments: str) -> str:
        """Run ``ceph`` as the administrator and return what it prints."""
        return self._admin("ceph", *arguments)

    def rbd(self, *arguments: str) -> str:
        """Run ``rbd`` as the administrator and return what it prints."""
        return self._admin("rbd", *arguments)

    def rados(self, *arguments: str, stdin: str = "") -> str:
        """Run ``rados`` as the administrator and return what it prints."""
        return self._admin("rados", *arguments, stdin=stdin)

    def _admin(self, program: str, *arguments: str, stdin: str = "") -> str:
        argv = [program, "--conf", str(self.ceph_conf), *arguments]
        return self._run(argv, timeout=_COMMAND_SECONDS, stdin=stdin).stdout

    def _claim_directory(self) -> None:
        marker = self.directory / _MARKER
        if self.directory.exists() and not marker.is_file() and any(self.directory.iterdir()):
            raise DevClusterError(f"{self.directory} is not empty and not a dev cluster's: choose another directory")
        self._daemons.stop()
        if marker.is_file() and not self.persist:
            shutil.rmtree(self.directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o700)
        marker.write_text("persist" if self.persist else "", encoding="utf-8")

    def _start(self, report: Callable[[str], None]) -> None:
        for name in ("mon", "mgr", "osd", "run", "log"):
            (self.directory / name).mkdir(exist_ok=True)
        report("starting the monitor")
        self._start_monitor()
        report("starting the OSD and the manager")
        self._start_osd()
        self._start_manager()
        self._wait_until("the OSD is up", self._osd_is_up)
        report(f"making the pool {POOL} and the user client.{USER}")
        self._write_driver_files()
        self._wait_until("the manager takes tasks", self._manager_takes_tasks)

    def _start_monitor(self) -> None:
        if not (self.directory / "mon" / "store.db").is_dir():
            self._make_monitor()
        self._daemon_program("ceph-mon", "-i", "a")

    def _make_monitor(self) -> None:
        fsid, monitor = str(uuid.uuid4()), "[v2:127.0.0.1:{},v1:127.0.0.1:{}]".format(*_free_ports(2))
        self._write("ceph.conf", configuration(self.directory, fsid, monitor, is_persistent=self.persist))
        keyring, monitor_map = str(self.directory / "keyring"), str(self.directory / "monmap")
        self._tool("ceph-authtool", "--create-keyring", "--gen-key", "-n", "mon.", "--cap", "mon", "allow *", keyring)
        everything = [word for service in ("mon", "osd", "mgr") for word in ("--cap", service, "allow *")]
        self._tool("ceph-authtool", "--gen-key", "-n", "client.admin", *everything, keyring)
        self._tool("monmaptool", "--create", "--clobber", "--fsid", fsid, "--addv", "a", monitor, monitor_map)
        self._daemon_program("ceph-mon", "--mkfs", "-i", "a", "--monmap", monitor_map, "--keyring", keyring)

    def _start_osd(self) -> None:
        made = self.directory / "osd" / "made"
        if not made.is_file():
            osd_uuid = str(uuid.uuid4())
            self.ceph("osd", "new", osd_uuid, "0")
            self._write_key("osd.0", "osd/keyring", "mon", "allow profile osd", "osd", "allow *", "mgr", "allow *")
            self._daemon_program("ceph-osd", "--mkfs", "-i", "0", "--osd-uuid", osd_uuid)
            if self.persist:
                made.touch()
        self._daemon_program("ceph-osd", "-i", "0")

    def _start_manager(self) -> None:
        self._write_key("mgr.x", "mgr/keyring", "mon", "allow profile mgr", "osd", "allow *")
        modules = devmanager.modules(self.directory / "modules")
        self._daemon_program("ceph-mgr", "-i", "x", "--mgr-module-path", str(modules))

    def _write_driver_files(self) -> None:
        if POOL not in self.ceph("osd", "pool", "ls").split():
            self.create_pool(POOL)
        entity = f"client.{USER}"
        self.ceph("auth", "get-or-create", entity, "mon", "profile rbd", "osd", "profile rbd", "mgr", "profile rbd")
        lines = self.ceph_conf.read_text(encoding="utf-8").splitlines()
        monitor = next(line.partition("= ")[2] for line in lines if line.startswith("mon host"))
        self._write("config.json", json.dumps([{"clusterID": CLUSTER_ID, "monitors": [monitor]}], indent=1) + "\n")
        secret = {"userID": USER, "userKey": self.ceph("auth", "get-key", entity).strip()}
        self._write("secret.json", json.dumps(secret, indent=1) + "\n")

    def _osd_is_up(self) -> bool:
        return bool(json.loads(self.ceph("osd", "stat", "--format", "json"))["num_up_osds"] == 1)

    def _manager_takes_tasks(self) -> bool:
        try:
            self.ceph("rbd", "task", "list")
        except ProcessError:
            return False
        return True

    def _write_key(self, entity: str, name: str, *capabilities: str) -> None:
        self._write(name, self.ceph("auth", "get-or-create", entity, *capabilities))

    def _write(self, name: str, text: str) -> None:
        path = self.directory / name
        with open(path, "w", encoding="utf-8", opener=lambda file, flags: os.open(file, flags, 0o600)) as file:
            file.write(text)

    def _tool(self, *argv: str) -> None:
        self._run(argv, timeout=_COMMAND_SECONDS)

    def _daemon_program(self, program: str, *arguments: str) -> None:
        """Run a daemon's program, which goes into the background by itself or, with --mkfs, ends."""
        self._tool(program, "--conf", str(self.ceph_conf), *arguments)

    def _wait_until(self, what: str, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while not is_so():
            if time.monotonic() > deadline:
                raise Unavailable(f"waited {_READY_SECONDS:g} s in vain until {what}")
            time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that nobody listens on, different from each other."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


@contextmanager
def running(directory: Path) -> Iterator[DevCluster]:
    """A cluster for the length of the ``with``."""
    cluster = DevCluster(directory)
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()
