"""The OSD hangs below a mounted volume that is being written: what needs no Ceph goes on, and nothing is lost.

``NODE_OUTAGE_SECONDS=60`` in the environment says for how long.
"""

import os

import pytest

from csi_host_rbd.devcluster import DevCluster
from csi_host_rbd.testing.hosted import hosted
from csi_host_rbd.testing.node_kit import Node
from csi_host_rbd.testing.outages import Outage
from csi_host_rbd.testing.rig import mounted

pytestmark = [pytest.mark.ceph, pytest.mark.root]

OUTAGE_SECONDS = float(os.environ.get("NODE_OUTAGE_SECONDS", "10"))
# What csi-host allows itself for statistics, and some for a machine that is busy.
STATS_SECONDS = 5.0 + 2.0
PROBE_SECONDS = 1.0


def test_with_the_osd_hung_stats_are_abnormal_in_time_and_every_write_is_there_afterwards(
    node: Node, ceph: DevCluster
) -> None:
    with hosted(node, node.directory) as host, host.served():
        busy, idle = (host.kit(node.make_volume(mounted(fs_type=fs_type))) for fs_type in ("ext4", "xfs"))
        outage = Outage(
            ceph=ceph, host=host, seconds=OUTAGE_SECONDS, stats_seconds=STATS_SECONDS, probe_seconds=PROBE_SECONDS
        )
        outage.live_through(busy, idle)
