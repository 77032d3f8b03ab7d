"""The OSD hangs below a mounted volume that is being written through the kernel's own client, or through nbd."""

import os
from pathlib import Path

import pytest

from csi_host_rbd.devcluster import DevCluster
from csi_host_rbd.testing.hosted import hosted
from csi_host_rbd.testing.node_kit import Node
from csi_host_rbd.testing.outages import Outage
from csi_host_rbd.testing.rig import mounted

pytestmark = [pytest.mark.ceph, pytest.mark.root]

OUTAGE_SECONDS = float(os.environ.get("NODE_OUTAGE_SECONDS", "10"))
# csi-host allows itself 5 s for statistics; the rest is for a machine without KVM.
STATS_SECONDS = 5.0 + 10.0
PROBE_SECONDS = 5.0
SIZE = 320 * 1024**2


@pytest.mark.parametrize("mounter", ["rbd", pytest.param("rbd-nbd", marks=pytest.mark.thorough)])
def test_with_the_osd_hung_all_that_needs_no_ceph_goes_on_and_no_write_is_lost(
    node: Node, ceph: DevCluster, directory: Path, mounter: str
) -> None:
    with hosted(node, directory) as host, host.served():
        busy, idle = (
            host.kit(node.make_volume(mounted(fs_type=fs_type), size_bytes=SIZE, mounter=mounter))
            for fs_type in ("ext4", "xfs")
        )
        outage = Outage(
            ceph=ceph, host=host, seconds=OUTAGE_SECONDS, stats_seconds=STATS_SECONDS, probe_seconds=PROBE_SECONDS
        )
        outage.live_through(busy, idle)
