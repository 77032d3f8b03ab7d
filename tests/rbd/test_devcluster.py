import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_host_rbd.devcluster import DevCluster, DevClusterError

pytestmark = pytest.mark.ceph


@pytest.fixture
def directory() -> Iterator[Path]:
    # Not pytest's own directory: its paths are longer than a socket's may be.
    parent = Path(tempfile.mkdtemp(prefix="csi-dev-"))
    yield parent / "c"
    DevCluster(parent / "c").down(purge=True)
    shutil.rmtree(parent)


def _command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-c", "from csi_host_rbd.cli import rbd; rbd()", "dev-cluster", *map(str, arguments)]


def _run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(_command(*arguments), capture_output=True, text=True, timeout=120, check=False)


@contextlib.contextmanager
def _process(name: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that looks like a daemon on its command line."""
    program = "import time; print(flush=True); time.sleep(600)"
    argv = [name, "-c", program, *arguments]
    with subprocess.Popen(argv, executable=sys.executable, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_a_directory_with_somebody_elses_files_is_left_alone(directory: Path) -> None:
    directory.mkdir()
    (directory / "precious").write_text("data")
    with pytest.raises(DevClusterError, match="not a dev cluster's"):
        DevCluster(directory).up()
    DevCluster(directory).down(purge=True)
    assert (directory / "precious").read_text() == "data"


def test_a_path_that_is_too_long_for_a_socket_is_refused_at_once(directory: Path) -> None:
    with pytest.raises(DevClusterError, match="characters at the most"):
        DevCluster(directory / ("x" * 100)).up()


def test_only_daemons_of_this_very_cluster_are_seen_and_stopped(directory: Path) -> None:
    cluster = DevCluster(directory)
    with (
        _process("ceph-osd", "--conf", f"{directory}-other/ceph.conf") as foreign,
        _process("vi", str(cluster.ceph_conf)) as editor,
        _process("ceph-osd", "--conf", str(cluster.ceph_conf)) as ours,
    ):
        assert [daemon.pid for daemon in cluster.daemons()] == [ours.pid]
        # The end of a child is seen in /proc only once somebody has asked for it.
        signal.signal(signal.SIGCHLD, lambda *_: ours.poll())
        try:
            cluster.down()
        finally:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        assert (foreign.poll(), editor.poll()) == (None, None)
        assert ours.wait(10) != 0


def test_nothing_to_stop_is_fine(directory: Path) -> None:
    assert _run("down", "--dir", directory).returncode == 0
    status = _run("status", "--dir", directory)
    assert (status.returncode, "not up" in status.stderr) == (1, True)


@pytest.mark.timeout(240)
def test_a_cluster_comes_up_after_a_crash_of_its_start_and_goes_for_good_with_a_hung_osd(directory: Path) -> None:
    cluster = DevCluster(directory)
    with subprocess.Popen(_command("up", "--dir", directory), stderr=subprocess.PIPE, text=True) as first:
        assert first.stderr is not None
        for line in first.stderr:
            if "OSD" in line:
                break
        os.kill(first.pid, signal.SIGKILL)
    assert cluster.daemons()
    assert not cluster.is_up()

    up = _run("up", "--dir", directory)
    assert up.returncode == 0, up.stderr
    assert str(cluster.clusters_file) in up.stdout
    assert cluster.secrets()["userKey"] not in up.stdout + up.stderr
    assert stat.S_IMODE(cluster.secret_file.stat().st_mode) == 0o600

    pids = {daemon.pid for daemon in cluster.daemons()}
    again = _run("up", "--dir", directory)
    assert "up already" in again.stderr
    assert {daemon.pid for daemon in cluster.daemons()} == pids
    assert _run("status", "--dir", directory).returncode == 0

    cluster.stop_osd()
    # Like what a killed start leaves: a command that waits for the cluster.
    waiting = subprocess.Popen(["rados", "--conf", str(cluster.ceph_conf), "--pool", cluster.pool, "ls"])
    assert _run("down", "--dir", directory).returncode == 0
    assert waiting.wait(10) == -signal.SIGKILL
    assert cluster.daemons() == []
    assert not directory.exists()


@pytest.mark.timeout(240)
def test_a_persistent_cluster_keeps_its_images_until_it_is_purged(directory: Path) -> None:
    cluster = DevCluster(directory, persist=True)
    cluster.up()
    cluster.rbd("create", "--size", "16M", f"{cluster.pool}/kept")
    secrets = cluster.secrets()
    cluster.down()
    assert cluster.daemons() == []

    cluster.up()
    assert cluster.rbd("ls", cluster.pool).split() == ["kept"]
    assert cluster.secrets() == secrets
    cluster.down(purge=True)
    assert not directory.exists()
