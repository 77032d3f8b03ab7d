"""csi-host as a process of its own, killed (SIGKILL) at every step of kubelet's calls: the next process goes on.

The steps come from the interpreter's audit hooks and from what is written to the cluster. At each of them the process
dies right before it, and for what lasts (programs, sockets) also in the middle of it. Kubelet's next call is the same
one again, or the opposite one, as when the pod was deleted meanwhile; nothing may be left in the end.
"""

import os
import random
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import pytest

from csi_host.proto import csi_pb2
from csi_host_rbd.devcluster import DevCluster
from csi_host_rbd.testing.machine import Machine
from csi_host_rbd.testing.node_kit import Kit, Node
from csi_host_rbd.testing.node_victims import NodeKill, NodeOrders, NodeVictim, node_victim
from csi_host_rbd.testing.rig import block, mounted

pytestmark = [pytest.mark.ceph, pytest.mark.root, pytest.mark.usefixtures("short_watches")]

AT_ONCE = 2
RPCS = ("NodeStageVolume", "NodePublishVolume", "NodeUnpublishVolume", "NodeUnstageVolume")
BEFORE = {"NodeStageVolume": 0, "NodePublishVolume": 1, "NodeUnpublishVolume": 2, "NodeUnstageVolume": 3}
NEVER = 10**6
# Of the volumes that share most of their steps with the first ones only some of these are tried, others each time.
SHARE = int(os.environ.get("NODE_KILLS_SHARE", "8"))
# kubelet asks again after these.
NOT_FINAL = {grpc.StatusCode.ABORTED, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE}


@dataclass(frozen=True, kw_only=True)
class Ward:
    """A volume on a node of its own, whose csi-host is killed."""

    cluster: DevCluster
    kit: Kit

    @contextmanager
    def served(self) -> Iterator[tuple[NodeVictim, Kit]]:
        """Start csi-host, and yield it with the volume's calls to it."""
        orders = NodeOrders(directory=self.kit.directory, clusters_file=self.cluster.clusters_file)
        with node_victim(orders) as process, process.node() as stub:
            rig = replace(self.kit.rig, served=replace(self.kit.rig.served, node=stub))
            yield process, replace(self.kit, rig=rig)

    def assert_clean(self) -> None:
        """Raise AssertionError when anything is left of the volume on this machine."""
        assert not self.kit.target().exists()
        assert list(self.kit.staging.iterdir()) == []
        Machine(directory=self.kit.directory).assert_clean()


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


def calls(kit: Kit) -> list[Callable[[], object]]:
    """Return kubelet's calls for a pod's life, in the order of RPCS."""
    return [kit.stage, kit.publish, kit.unpublish, kit.unstage]


def insist(call: Callable[[], object]) -> None:
    """Repeat a call as kubelet does, until it succeeds or there is no hope."""
    for tries_left in reversed(range(20)):
        try:
            call()
        except grpc.RpcError as error:
            if error.code() not in NOT_FINAL or not tries_left:
                raise
            threading.Event().wait(0.5)
        else:
            return


def steps_of(ward: Ward) -> list[NodeKill]:
    """Go through the volume's life unharmed, and return every way in which it can be cut off."""
    found = []
    with ward.served() as (process, kit):
        for rpc, call in zip(RPCS, calls(kit), strict=True):
            process.arm(NodeKill(rpc=rpc, step=NEVER))
            call()
            for number, step in enumerate(process.steps(), start=1):
                found.append(NodeKill(rpc=rpc, step=number))
                if step.startswith(("subprocess.Popen", "socket.connect")) and "blkid" not in step:
                    found.append(NodeKill(rpc=rpc, step=number, is_during=True))
    ward.assert_clean()
    return found


def live_through(ward: Ward, kill: NodeKill) -> bool:
    """Have the volume's csi-host killed, and a new one go on; return whether it was killed."""
    try:
        return _live_through(ward, kill)
    except BaseException as error:
        error.add_note(f"killed at {kill}")
        raise


def _live_through(ward: Ward, kill: NodeKill) -> bool:
    begun = BEFORE[kill.rpc]
    with ward.served() as (process, kit):
        for call in calls(kit)[:begun]:
            insist(call)
        if begun in {1, 2} and not is_block(kit):
            (kit.staged / "file").write_text("data")
        process.arm(kill)
        with suppress(grpc.RpcError):
            calls(kit)[begun]()
        is_killed = process.is_killed()
    with ward.served() as (_, kit):
        # The same call again, or the pod is gone and kubelet takes everything away.
        if kill.step % 2:
            insist(calls(kit)[begun])
            if begun == 0:
                insist(kit.publish)
            if begun == 1 and not is_block(kit):
                assert (kit.target() / "file").read_text() == "data"
        insist(kit.unpublish)
        insist(kit.unstage)
        ward.assert_clean()
        if kill.rpc == "NodeStageVolume" and kill.is_during and not is_block(kit):
            insist(kit.stage)
            (kit.staged / "file").write_text("data")
            insist(kit.unstage)
            ward.assert_clean()
    return is_killed


def is_block(kit: Kit) -> bool:
    return kit.capability.HasField("block")


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
    kills = steps_of(make_ward(capability))
    assert {kill.rpc for kill in kills} == set(RPCS)
    assert len(kills) > 30
    chosen = random.sample(kills, len(kills) // share)
    wards = [make_ward(capability) for _ in chosen]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        happened = list(pool.map(live_through, wards, chosen))
    assert [str(kill) for kill, is_killed in zip(chosen, happened, strict=True) if not is_killed] == []
