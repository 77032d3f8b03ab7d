"""The OSD hangs below a mounted volume that is being written: what needs no Ceph goes on, and nothing is lost.

``NODE_OUTAGE_SECONDS=60`` in the environment says for how long.
"""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_host.proto import csi_pb2
from csi_host_rbd.devcluster import DevCluster
from csi_host_rbd.testing.hosted import Hosted, hosted
from csi_host_rbd.testing.node_kit import Kit, Node
from csi_host_rbd.testing.rig import mounted

pytestmark = [pytest.mark.ceph, pytest.mark.root]

OUTAGE_SECONDS = float(os.environ.get("NODE_OUTAGE_SECONDS", "10"))
# What csi-host allows itself for statistics, and some for a machine that is busy.
STATS_SECONDS = 5.0 + 2.0
LINE = 4096


class Writer(threading.Thread):
    """A pod that appends numbered lines and knows of each whether it is safe."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self._path = path
        self._ended = threading.Event()
        self.safe = 0
        self.failure: OSError | None = None

    def run(self) -> None:
        try:
            with self._path.open("wb", buffering=0) as file:
                while not self._ended.is_set():
                    file.write(line(self.safe))
                    os.fsync(file.fileno())
                    self.safe += 1
        except OSError as error:
            self.failure = error

    def end(self) -> None:
        self._ended.set()
        self.join(60)
        assert not self.is_alive()
        assert self.failure is None

    def wait_for_more(self) -> None:
        wanted = self.safe + 3
        until = time.monotonic() + 30
        while self.safe < wanted and self.is_alive():
            assert time.monotonic() < until
            self._ended.wait(0.05)


def line(number: int) -> bytes:
    return f"{number:015d}\n".encode() * (LINE // 16)


@pytest.fixture
def host(node: Node) -> Iterator[Hosted]:
    with hosted(node, node.directory) as one:
        process = one.start()
        yield one
        process.stop()


@pytest.fixture
def hang(ceph: DevCluster) -> Iterator[DevCluster]:
    """The cluster, whose OSD goes on at the latest when the test ends."""
    yield ceph
    ceph.resume_osd()


def timed_stats(kit: Kit, name: str) -> csi_pb2.NodeGetVolumeStatsResponse:
    begun = time.monotonic()
    answer = kit.stats(name)
    assert time.monotonic() - begun < STATS_SECONDS
    return answer


def test_with_the_osd_hung_stats_are_abnormal_in_time_and_every_write_is_there_afterwards(
    node: Node, host: Hosted, hang: DevCluster
) -> None:
    busy, idle = (host.kit(node.make_volume(mounted(fs_type=fs_type))) for fs_type in ("ext4", "xfs"))
    for kit in (busy, idle):
        kit.stage()
    idle.publish("idle")
    writer = Writer(busy.publish("busy") / "log")
    writer.start()
    writer.wait_for_more()
    hang.stop_osd()
    until = time.monotonic() + OUTAGE_SECONDS
    time.sleep(0.5)
    safe_before = writer.safe
    while True:
        answer = timed_stats(busy, "busy")
        assert answer.volume_condition.abnormal
        assert "backend" in answer.volume_condition.message
        assert not timed_stats(idle, "idle").volume_condition.abnormal
        begun = time.monotonic()
        assert host.rig.served.identity.Probe(csi_pb2.ProbeRequest(), timeout=5).ready.value
        assert time.monotonic() - begun < 1
        # Bind mounts of a volume whose device is silent, too.
        for kit in (idle, busy):
            kit.publish("another")
            kit.unpublish("another")
        if time.monotonic() > until:
            break
    assert writer.safe <= safe_before + 1
    hang.resume_osd()
    writer.wait_for_more()
    assert not timed_stats(busy, "busy").volume_condition.abnormal
    writer.end()
    busy.unpublish("busy")
    busy.unstage()
    busy.stage()
    content = (busy.publish("busy") / "log").read_bytes()
    assert content[: writer.safe * LINE] == b"".join(map(line, range(writer.safe)))
