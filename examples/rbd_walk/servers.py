"""The two things that run: a one-node Ceph and csi-host."""

import signal
import subprocess
from pathlib import Path

from .client import CSI_HOST, CommandFailed, environment, run
from .workplace import Workplace

NODE_ID = "walk"
DRIVER_NAME = "rbd.csi.ceph.com"
CLUSTER_ID = "dev"
POOL = "rbd"
_CLUSTER_SECONDS = 180.0
_START_ATTEMPTS = 40
_STOP_SECONDS = 30.0
_TOOL_SECONDS = 60.0


class Cluster:
    """The one-node Ceph, by ``csi-host rbd dev-cluster``."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.ceph_conf = directory / "ceph.conf"
        self.clusters_file = directory / "config.json"
        self.secrets_file = directory / "secret.json"

    def up(self) -> None:
        """Start it; raises CommandFailed."""
        self._command("up")

    def down(self) -> None:
        """Stop it and remove what it kept; fine when it never came up. Raises CommandFailed."""
        self._command("down")

    def images(self) -> list[str]:
        """Return the images in the pool."""
        return self._tool("rbd", "ls")

    def trash(self) -> list[str]:
        """Return the images that are put away, not yet removed."""
        return self._tool("rbd", "trash", "ls")

    def journal(self) -> list[str]:
        """Return what the driver keeps of its volumes: objects of a volume's own, and names in the directory."""
        objects = self._tool("rados", "ls")
        directories = [name for name in objects if name.startswith("csi.volumes.")]
        names = [f"{name}: {key}" for name in directories for key in self._tool("rados", "listomapkeys", name)]
        return [name for name in objects if name.startswith("csi.volume.")] + names

    def _command(self, action: str) -> None:
        run([str(CSI_HOST), "rbd", "dev-cluster", action, "--dir", str(self._directory)], seconds=_CLUSTER_SECONDS)

    def _tool(self, program: str, *words: str) -> list[str]:
        return run([program, "--conf", str(self.ceph_conf), "--pool", POOL, *words], seconds=_TOOL_SECONDS).splitlines()


class Host:
    """csi-host, serving the rbd driver on a unix socket."""

    def __init__(self, place: Workplace, clusters_file: Path) -> None:
        self.endpoint = f"unix://{place.socket}"
        self._log_file = place.log_file
        self._argv = [
            str(CSI_HOST),
            "--driver=rbd",
            f"--endpoint={self.endpoint}",
            f"--nodeid={NODE_ID}",
            f"--drivername={DRIVER_NAME}",
            f"--cephcsiconfig={clusters_file}",
            f"--qemudirectory={place.qemu}",
            f"--stagingpath={place.staging}",
            "--loglevel=debug",
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers; raises CommandFailed."""
        with self._log_file.open("wb") as log:
            # A session of its own: the terminal's Ctrl-C is for us, who then end it in order.
            self._process = subprocess.Popen(
                self._argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=environment()
            )
        for _ in range(_START_ATTEMPTS):
            if self._process.poll() is not None:
                break
            try:
                run([str(CSI_HOST), "probe", "--endpoint", self.endpoint, "--timeout", "1s"], seconds=_TOOL_SECONDS)
            except CommandFailed:
                continue
            return
        raise CommandFailed("csi-host does not serve")

    def wait(self) -> int:
        """Wait until it ends by itself, which it should not; return its exit code."""
        return self._process.wait() if self._process else 0

    def stop(self) -> None:
        """End it, as kindly as it lets us; fine when it does not run."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
