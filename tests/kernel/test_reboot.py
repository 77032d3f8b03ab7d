"""The power of a node is cut while its volumes are in use: what kubelet calls after the reboot succeeds."""

import shlex
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from csi_host_rbd.devcluster import DevCluster
from csi_host_vm import machine
from csi_host_vm.hands import Hands
from csi_host_vm.reboot import AFTER, BEFORE

pytestmark = [pytest.mark.ceph, pytest.mark.root, pytest.mark.outside, pytest.mark.timeout(1300)]

_SECONDS = 600.0
_LAST_BYTES = 5000


def run_side(side: str, cluster: DevCluster, share: Path) -> None:
    """Run one side in a machine of its own, and cut its power when it is through."""
    # The machine goes on after it, with everything mapped and mounted.
    command = (
        f"{shlex.join([sys.executable, '-m', 'csi_host_vm.reboot', side, str(cluster.directory)])}\nsleep infinity"
    )
    process = machine.boot(command, share=share)
    assert process.stdout is not None
    console = (share / f"{side}.console").open("w+b")
    reader = threading.Thread(target=shutil.copyfileobj, args=(process.stdout, console, 1), daemon=True)
    reader.start()
    try:
        until = time.monotonic() + _SECONDS
        while not (share / side).exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stdout.close()
        console.close()
    outcome = (share / side).read_text() if (share / side).exists() else "the machine said nothing"
    said = (share / f"{side}.console").read_bytes()[-_LAST_BYTES:].decode(errors="replace")
    assert outcome == "ok", f"{outcome}\nThe console ends with:\n{said}"


def test_after_a_power_cut_every_volume_is_staged_anew_or_cleared_away(ceph_outside: DevCluster) -> None:
    with tempfile.TemporaryDirectory(prefix="csi-vm-") as directory, Hands(Path(directory)):
        run_side(BEFORE, ceph_outside, Path(directory))
        run_side(AFTER, ceph_outside, Path(directory))
