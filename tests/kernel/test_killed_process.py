"""csi-host as a process of its own, killed (SIGKILL) at steps of kubelet's calls with the kernel's modules below it.

``NODE_KILLS_SHARE=1`` in the environment tries every step; as it is, one of so many is tried, others each time.
"""

import os
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from csi_host.proto import csi_pb2
from csi_host_rbd.devcluster import DevCluster
from csi_host_rbd.testing.node_kit import Node
from csi_host_rbd.testing.rig import block, mounted
from csi_host_rbd.testing.wards import RPCS, Ward

pytestmark = [pytest.mark.ceph, pytest.mark.root, pytest.mark.thorough]

SHARE = int(os.environ.get("NODE_KILLS_SHARE", "40"))
SIZE = 96 * 1024**2
MakeWard = Callable[[], Ward]


@pytest.fixture
def make_ward(node: Node, ceph: DevCluster, request: pytest.FixtureRequest) -> Iterator[MakeWard]:
    mounter, capability, is_encrypted = request.param
    parameters = {"mounter": mounter} | ({"encrypted": "true"} if is_encrypted else {})
    directories: list[tempfile.TemporaryDirectory[str]] = []

    def make() -> Ward:
        directories.append(tempfile.TemporaryDirectory(prefix="csi-n-"))
        kit = node.make_volume(capability, size_bytes=SIZE, **parameters)
        node.kits.remove(kit)
        return Ward(cluster=ceph, kit=replace(kit, directory=Path(directories[-1].name)))

    yield make
    for directory in directories:
        directory.cleanup()


def case(mounter: str, capability: csi_pb2.VolumeCapability, *, is_encrypted: bool = False) -> object:
    kind = "block" if capability.HasField("block") else capability.mount.fs_type
    name = f"{mounter}-{kind}-{'luks' if is_encrypted else 'plain'}"
    return pytest.param((mounter, capability, is_encrypted), id=name)


@pytest.mark.parametrize(
    "make_ward",
    [
        case("rbd", mounted(fs_type="ext4")),
        case("rbd", block(), is_encrypted=True),
        case("rbd-nbd", mounted(fs_type="ext4")),
    ],
    indirect=True,
)
def test_wherever_csi_host_is_killed_the_next_one_goes_on_and_leaves_nothing(make_ward: MakeWard) -> None:
    # What is made once on a machine is no step of each life.
    make_ward().steps()
    kills = make_ward().steps()
    assert {kill.rpc for kill in kills} == set(RPCS)
    assert len(kills) > 30
    chosen = random.sample(kills, max(1, len(kills) // SHARE))
    happened = [make_ward().live_through(kill) for kill in chosen]
    assert [str(kill) for kill, is_killed in zip(chosen, happened, strict=True) if not is_killed] == []
