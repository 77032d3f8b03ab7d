"""A real CephFS for the tests: a monitor, an OSD in memory and an MDS of our own, mounted through ceph-fuse."""

import contextlib
import os
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

_COMMAND_SECONDS = 60.0
_WAIT_SECONDS = 60.0
_LOOK_AGAIN_SECONDS = 0.2

_CONF = """\
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{port}]
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
mon allow pool size one = true
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = 1073741824
mon data = {root}/mon
osd data = {root}/osd
mds data = {root}/mds
run dir = {root}
crash dir = {root}
admin socket = {root}/$name.asok
log file = {root}/$name.log
keyring = {root}/keyring
"""


@dataclass(frozen=True, kw_only=True)
class TinyCephFs:
    """The daemons, children of the test run, and everything they write, in one directory."""

    root: Path
    stack: contextlib.ExitStack
    fsid: str = field(default_factory=lambda: str(uuid.uuid4()))

    @property
    def mount_point(self) -> Path:
        return self.root / "mnt"

    def start(self) -> None:
        """Start the daemons one after the other and mount; returns when the mount is there."""
        port = _free_port()
        (self.root / "ceph.conf").write_text(_CONF.format(fsid=self.fsid, port=port, root=self.root))
        for name in ("mon", "osd", "mds", "mnt"):
            (self.root / name).mkdir()
        self._start_monitor(port)
        self._start_osd()
        self._start_mds()
        self._mount()

    def _start_monitor(self, port: int) -> None:
        monmap = str(self.root / "monmap")
        _run("monmaptool", "--create", "--fsid", self.fsid, "--addv", "a", f"[v2:127.0.0.1:{port}]", monmap)
        self._ceph_run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap)
        self._daemon("ceph-mon", "-i", "a")

    def _start_osd(self) -> None:
        osd = str(uuid.uuid4())
        self._ceph_run("ceph", "osd", "new", osd)
        self._ceph_run("ceph-osd", "--mkfs", "-i", "0", "--osd-uuid", osd)
        self._daemon("ceph-osd", "-i", "0")

    def _start_mds(self) -> None:
        for pool in ("metadata", "data"):
            self._ceph_run("ceph", "osd", "pool", "create", pool, "8")
        self._ceph_run("ceph", "fs", "new", "cephfs", "metadata", "data")
        self._daemon("ceph-mds", "-i", "a")
        wait_until(lambda: "up:active" in self._ceph_run("ceph", "mds", "stat"), "the MDS is active")

    def _mount(self) -> None:
        self._daemon("ceph-fuse", str(self.mount_point))
        self.stack.callback(_run, "umount", "--lazy", str(self.mount_point))
        wait_until(lambda: os.path.ismount(self.mount_point), "ceph-fuse has mounted")

    def _ceph_run(self, program: str, *arguments: str) -> str:
        return _run(program, "--conf", str(self.root / "ceph.conf"), *arguments)

    def _daemon(self, program: str, *arguments: str) -> None:
        command = [program, "--conf", str(self.root / "ceph.conf"), "-f", *arguments]
        with (self.root / f"{program}.out").open("wb") as out:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        self.stack.callback(_end, process)


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    """Wait for something that other processes bring about; fails when it does not come."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while not is_so():
        assert time.monotonic() < deadline, f"waited {_WAIT_SECONDS:g} s, and still not: {what}"
        time.sleep(_LOOK_AGAIN_SECONDS)


@pytest.fixture(scope="session")
def cephfs_root() -> Iterator[Path]:
    """The mounted root of a CephFS that lives as long as the test run."""
    # Not pytest's own directory: the path of an admin socket may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="cephfs-") as directory, contextlib.ExitStack() as stack:
        cluster = TinyCephFs(root=Path(directory), stack=stack)
        cluster.start()
        yield cluster.mount_point


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool], str], None]:
    """Wait for what the MDS only tells after a while."""
    return wait_until


def _run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"
    return done.stdout


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(_COMMAND_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
