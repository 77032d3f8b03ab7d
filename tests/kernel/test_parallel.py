"""Many volumes of the kernel's own client and of nbd at once, while csi-host is restarted: nothing fails or is lost.

``NODE_VOLUMES=20`` and ``NODE_ROUNDS=10`` in the environment say how many volumes and rounds.
"""

import os
from pathlib import Path

import pytest

from csi_host_rbd.testing.hosted import hosted
from csi_host_rbd.testing.many_lives import live_all_at_once
from csi_host_rbd.testing.node_kit import Node
from csi_host_rbd.testing.rig import mounted

pytestmark = [pytest.mark.ceph, pytest.mark.root, pytest.mark.thorough]

VOLUMES = int(os.environ.get("NODE_VOLUMES", "4"))
ROUNDS = int(os.environ.get("NODE_ROUNDS", "2"))
SIZE = 320 * 1024**2


@pytest.mark.parametrize("mounter", ["rbd", "rbd-nbd"])
def test_many_volumes_at_once_and_a_restart_lose_nothing_and_leave_nothing(
    node: Node, directory: Path, mounter: str
) -> None:
    kits = [
        node.make_volume(mounted(fs_type=("ext4", "xfs")[number % 2]), size_bytes=SIZE, mounter=mounter)
        for number in range(VOLUMES)
    ]
    # Without KVM a stage takes longer than the usual grace.
    with hosted(node, directory, "--grace-period=240s") as host:
        live_all_at_once(host, kits, rounds=ROUNDS)
