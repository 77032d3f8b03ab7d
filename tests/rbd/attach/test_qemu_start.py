"""Where and with what the storage daemon is started: its network namespace, its files, its modules."""

import os
import stat
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from csi_host.process import ProcessResult, run
from csi_host.testing.namespaces import other_mount_namespace
from csi_host_rbd.attach.attacher import AttachRequest
from csi_host_rbd.attach.client import NetworkNamespaceMissing
from csi_host_rbd.attach.qemu import QemuAttacher
from csi_host_rbd.attach.qemu_modules import PROGRAM, DriverMissing
from csi_host_rbd.attach.registry import Attachers
from csi_host_rbd.attach.storage_daemon import ImageNotOpened
from csi_host_rbd.testing.images import Images
from csi_host_rbd.testing.machine import Machine

pytestmark = [pytest.mark.ceph, pytest.mark.root]

RequestFor = Callable[..., AttachRequest]


@pytest.fixture
def lonely_network() -> Iterator[Path]:
    """A network namespace without any way to the cluster, as the file that a configuration names."""
    with subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo ready; read end"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as keeper:
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == b"ready\n"
        yield Path(f"/proc/{keeper.pid}/ns/net")
        keeper.kill()


class Watching:
    """The real runner; looks at the daemon's network namespace whenever a program has ended."""

    def __init__(self, machine: Machine) -> None:
        self.seen: set[Path] = set()
        self._machine = machine

    def __call__(self, argv: Sequence[str], **how: Any) -> ProcessResult:
        result = run(argv, **how)
        self.seen |= {Path(f"/proc/{pid}/ns/net").readlink() for pid in self._machine.daemons()}
        return result


def test_the_cluster_is_reached_through_the_network_namespace_that_is_configured(
    directory: Path, images: Images, request_for: RequestFor, machine: Machine, lonely_network: Path
) -> None:
    watching = Watching(machine)
    attacher = QemuAttacher(run=watching, directory=directory / "qemu", connect_timeout=2)
    with pytest.raises(ImageNotOpened, match="cannot be opened"):
        attacher.attach(request_for(images.make(), network_namespace=lonely_network))
    assert watching.seen == {lonely_network.readlink()} != {Path("/proc/self/ns/net").readlink()}
    machine.assert_clean()


def test_a_daemon_that_was_started_in_a_namespace_is_found_and_ended(
    attacher: QemuAttacher, images: Images, request_for: RequestFor, machine: Machine
) -> None:
    request = request_for(images.make(), network_namespace=Path(f"/proc/{os.getpid()}/ns/net"))
    attachment = attacher.attach(request)
    assert attachment.is_alive
    assert attacher.find(request.spec) == attachment
    assert attacher.grow(request.spec) > 0
    attacher.detach(request.spec)
    machine.assert_clean()


def test_a_network_namespace_that_is_missing_is_named(
    attacher: QemuAttacher, images: Images, request_for: RequestFor, machine: Machine
) -> None:
    with pytest.raises(NetworkNamespaceMissing, match=r"rbd\.netNamespaceFilePath: /run/netns/absent is not there"):
        attacher.attach(request_for(images.make(), network_namespace=Path("/run/netns/absent")))
    machine.assert_clean()


def test_nobody_else_can_read_what_the_daemon_is_told(
    directory: Path, images: Images, request_for: RequestFor, machine: Machine
) -> None:
    conf = directory / "ceph.conf"
    conf.write_text("[global]\nmon_max_pg_per_osd = 1\n")
    attacher = QemuAttacher(run=run, directory=directory / "qemu", ceph_conf=conf)
    request = request_for(images.make())
    before = os.umask(0)
    try:
        attacher.attach(request)
        modes = {file.name: stat.S_IMODE(file.lstat().st_mode) for file in (directory / "qemu").glob("*/*")}
    finally:
        os.umask(before)
        attacher.detach(request.spec)
    assert modes.pop("qmp.sock")
    assert modes == dict.fromkeys(("ceph.conf", "image", "node.json", "spec.json"), 0o600)
    machine.assert_clean()


def test_a_daemon_without_its_driver_for_rbd_is_passed_over_and_the_package_is_named(directory: Path) -> None:
    """Its modules are hidden in a mount namespace of its own; those of this machine's other daemons stay."""
    with other_mount_namespace() as run_there:
        (modules,) = {path.parent for path in Path("/usr/lib").glob("**/qemu/block-rbd.so")}

        def run_some_there(argv: Sequence[str], **how: Any) -> ProcessResult:
            return run([*run_there.enter, *argv] if argv[0] == PROGRAM else argv, **how)

        attacher = QemuAttacher(run=run_some_there, directory=directory / "qemu")
        run_there("mount", "-t", "tmpfs", "none", str(modules))
        for _ in range(2):
            with pytest.raises(DriverMissing, match="install the Debian package qemu-block-extra"):
                Attachers([attacher], default="qemu").choose("qemu", 0)
        # Installed in the meantime.
        run_there("umount", str(modules))
        assert Attachers([attacher], default="qemu").choose("qemu", 0) is attacher
    assert not (directory / "qemu").exists()
