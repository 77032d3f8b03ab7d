"""rbd-nbd's log where a class asks for one."""

import gzip
import time
from pathlib import Path

import pytest

from csi_host_rbd.testing.machine import kill_rbd_nbd
from csi_host_rbd.testing.node_kit import MIB, Node
from csi_host_rbd.testing.rig import mounted

pytestmark = [pytest.mark.ceph, pytest.mark.root]


def test_a_daemon_and_its_successor_write_a_log_that_is_compressed_in_the_end(node: Node, directory: Path) -> None:
    kit = node.make_volume(
        mounted(fs_type="ext4"),
        size_bytes=96 * MIB,
        mounter="rbd-nbd",
        mapOptions="nbd:debug_rbd=10",
        cephLogDir=str(directory / "logs"),
        cephLogStrategy="compress",
    )
    kit.stage()
    log = directory / f"logs/rbd-nbd-{kit.volume.volume_id}.log"
    written = log.read_bytes()
    assert b"librbd" in written
    kill_rbd_nbd()
    kit.stage()
    more = log.read_bytes()
    assert more.startswith(written)
    assert len(more) > len(written)
    kit.unstage()
    # It is compressed in the background.
    until = time.monotonic() + 60
    while len(list((directory / "logs").iterdir())) != 1 or not Path(f"{log}.gz").exists():
        assert time.monotonic() < until
        time.sleep(0.2)
    (packed,) = (directory / "logs").iterdir()
    assert packed.name == f"{log.name}.gz"
    assert gzip.decompress(packed.read_bytes()).startswith(more)
