"""rbd-nbd in a container: other pids than the machine's, another network namespace than the cluster's."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from csi_host.errors import Unavailable
from csi_host.process import run
from csi_host.testing.runner import Answer, Command
from csi_host_rbd.attach.attacher import Attachment
from csi_host_rbd.attach.client import RbdClient
from csi_host_rbd.attach.nbd import NbdAttacher, PidsNotSeen
from csi_host_rbd.attach.processes import find_processes
from csi_host_rbd.testing.nbd_kernel import DEVICE, REQUEST, SPEC, NbdKernel

OTHER = "pid:[4026532999]"


def test_in_a_container_the_pid_is_another_namespaces_and_the_cookie_tells(nbd_kernel: NbdKernel) -> None:
    nbd_kernel.number_pids(OTHER)
    nbd_kernel.start("rbd-nbd", "map", "rbd/tenant/one", "--cookie=v1")
    nbd_kernel.connect(4711)
    assert nbd_kernel.attacher().find(SPEC) == Attachment(device=DEVICE, read_only=False)


def test_in_a_container_a_pid_is_not_taken_for_that_of_a_process_here(nbd_kernel: NbdKernel) -> None:
    """Another image's data would be taken for this one's."""
    nbd_kernel.connect(nbd_kernel.start("rbd-nbd", "map", "rbd/tenant/one", "--cookie=v1"), cookie="")
    assert nbd_kernel.attacher().find(SPEC) is not None
    nbd_kernel.number_pids(OTHER)
    assert nbd_kernel.attacher().find(SPEC) is None


def test_without_the_machines_pids_nothing_is_mapped_in_another_network(nbd_kernel: NbdKernel) -> None:
    elsewhere = replace(REQUEST, network_namespace=nbd_kernel.root)
    nbd_kernel.number_pids(OTHER)
    with pytest.raises(PidsNotSeen, match=r"rbd\.netNamespaceFilePath.*hostPID"):
        nbd_kernel.attacher().attach(elsewhere)
    assert nbd_kernel.run.commands == []
    assert nbd_kernel.attacher().attach(REQUEST).is_alive


@pytest.mark.root
def test_a_daemon_whose_device_is_not_found_is_ended_and_an_earlier_one_is_not(
    nbd_kernel: NbdKernel, tmp_path: Path
) -> None:
    program = tmp_path / "rbd-nbd"
    program.symlink_to(sys.executable)
    spec = replace(SPEC, image=tmp_path.name, volume_id=str(tmp_path))
    words = [str(program), "-c", "import sys; sys.stdin.read()", "map", str(spec)]
    started = []

    def start(cookie: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([*words, f"--cookie={cookie}"], stdin=subprocess.PIPE)
        started.append(process)
        return process

    def without_device(_: Command) -> Answer:
        start(spec.volume_id)
        return Answer()

    nbd_kernel.run.install("rbd-nbd", without_device)
    attacher = NbdAttacher(
        run=nbd_kernel.run,
        client=RbdClient(run=nbd_kernel.run),
        kept=nbd_kernel.kept,
        sysfs=nbd_kernel.root,
        sockets=tmp_path / "sockets",
        patience=5,
    )
    earlier, another = start(spec.volume_id), start("another volume's")
    try:
        with pytest.raises(Unavailable, match="shows no such device"):
            attacher.attach(replace(REQUEST, spec=spec))
        assert sorted(find_processes("rbd-nbd", str(spec))) == sorted([earlier.pid, another.pid])
        assert nbd_kernel.kept.find(spec) is None
    finally:
        for process in started:
            process.kill()
            process.communicate()


@pytest.mark.root
def test_a_process_with_pids_of_its_own_knows_it() -> None:
    code = "import pathlib; from csi_host_rbd.attach.nbd_daemons import sees_machines_pids as sees; "
    code += "print(sees(pathlib.Path('/proc')), sees(pathlib.Path('/nowhere')))"
    unshared = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code]
    assert run(unshared, timeout=60).stdout == "False False\n"
