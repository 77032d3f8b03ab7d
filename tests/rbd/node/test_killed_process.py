"""csi-host as a process of its own, killed (SIGKILL) at every step of kubelet's calls: the next process goes on."""

import os
import random
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from csi_host.proto import csi_pb2
from csi_host_rbd.devcluster import DevCluster
from csi_host_rbd.testing.machine import Machine
from csi_host_rbd.testing.node_kit import Node
from csi_host_rbd.testing.rig import block, mounted
from csi_host_rbd.testing.wards import RPCS, Ward

pytestmark = [pytest.mark.ceph, pytest.mark.root, pytest.mark.usefixtures("short_watches")]

AT_ONCE = 2
# Of the volumes that share most of their steps with the first ones only some of these are tried, others each time.
SHARE = int(os.environ.get("NODE_KILLS_SHARE", "8"))


@pytest.fixture
def make_ward(node: Node, ceph: DevCluster) -> Iterator[Callable[[csi_pb2.VolumeCapability], Ward]]:
    directories: list[tempfile.TemporaryDirectory[str]] = []

    def make(capability: csi_pb2.VolumeCapability) -> Ward:
        directories.append(tempfile.TemporaryDirectory(prefix="csi-n-"))
        kit = node.make_volume(capability)
        node.kits.remove(kit)
        return Ward(cluster=ceph, kit=replace(kit, directory=Path(directories[-1].name)))

    yield make
    for directory in directories:
        Machine(directory=Path(directory.name)).clear_by_force()
        directory.cleanup()


@pytest.mark.parametrize(
    ("capability", "share"),
    [
        pytest.param(mounted(fs_type="ext4"), 1, id="ext4"),
        pytest.param(mounted(fs_type="xfs"), SHARE, id="xfs"),
        pytest.param(block(), SHARE, id="block"),
    ],
)
def test_wherever_csi_host_is_killed_the_next_one_goes_on_and_leaves_nothing(
    make_ward: Callable[[csi_pb2.VolumeCapability], Ward], capability: csi_pb2.VolumeCapability, share: int
) -> None:
    kills = make_ward(capability).steps()
    assert {kill.rpc for kill in kills} == set(RPCS)
    assert len(kills) > 30
    chosen = random.sample(kills, len(kills) // share)
    wards = [make_ward(capability) for _ in chosen]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        happened = list(pool.map(Ward.live_through, wards, chosen))
    assert [str(kill) for kill, is_killed in zip(chosen, happened, strict=True) if not is_killed] == []
