"""The OSD hangs below a mounted volume that is being written: what needs no Ceph goes on, and nothing is lost.

``NODE_OUTAGE_SECONDS=60`` in the environment says for how long.
"""

import os
import time
from collections.abc import Iterator

import pytest

from csi_host.proto import csi_pb2
from csi_host_rbd.devcluster import DevCluster
from csi_host_rbd.testing.hosted import Hosted, hosted
from csi_host_rbd.testing.node_kit import Kit, Node
from csi_host_rbd.testing.rig import mounted
from csi_host_rbd.testing.writers import Writer

pytestmark = [pytest.mark.ceph, pytest.mark.root]

OUTAGE_SECONDS = float(os.environ.get("NODE_OUTAGE_SECONDS", "10"))
# What csi-host allows itself for statistics, and some for a machine that is busy.
STATS_SECONDS = 5.0 + 2.0
# A write that waited for the cluster goes on some seconds after it.
MORE_SECONDS = 30.0


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
    writer = Writer(busy.publish("busy") / "log", patience=MORE_SECONDS)
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
    writer.check(busy.publish("busy") / "log")
