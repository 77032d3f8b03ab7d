"""Twenty volumes live through their lives at once, while csi-host is restarted: nothing fails, nothing is lost.

``NODE_ROUNDS=10`` in the environment says how many rounds.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from csi_host_rbd.testing.hosted import hosted
from csi_host_rbd.testing.many_lives import live_all_at_once
from csi_host_rbd.testing.node_kit import Node
from csi_host_rbd.testing.rig import mounted

pytestmark = [pytest.mark.ceph, pytest.mark.root, pytest.mark.timeout(1800)]

VOLUMES = 20
ROUNDS = int(os.environ.get("NODE_ROUNDS", "2"))


def test_twenty_volumes_at_once_and_a_restart_lose_nothing_and_leave_nothing(node: Node) -> None:
    capabilities = [mounted(fs_type=("ext4", "xfs")[number % 2]) for number in range(VOLUMES)]
    with ThreadPoolExecutor(4) as callers:
        kits = list(callers.map(node.make_volume, capabilities))
    with hosted(node, node.directory) as host:
        live_all_at_once(host, kits, rounds=ROUNDS)
    node.machine.assert_clean()
