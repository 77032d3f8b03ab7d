"""A volume on a node whose csi-host is killed (SIGKILL) at a step of kubelet's calls, and what comes after.

The steps come from the interpreter's audit hooks and from what is written to the cluster. At each of them the process
dies right before it, and for what lasts (programs, sockets) also in the middle of it. Kubelet's next call is the same
one again, or the opposite one, as when the pod was deleted meanwhile; nothing may be left in the end.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import grpc

from csi_host_rbd.devcluster import DevCluster
from csi_host_rbd.testing.machine import Machine, left_of_image
from csi_host_rbd.testing.node_kit import Kit
from csi_host_rbd.testing.node_victims import NodeKill, NodeOrders, NodeVictim, node_victim

RPCS = ("NodeStageVolume", "NodePublishVolume", "NodeUnpublishVolume", "NodeUnstageVolume")
_NEVER = 10**6
_TRIES = 20
_PAUSE_SECONDS = 0.5
# kubelet asks again after these.
_NOT_FINAL = {grpc.StatusCode.ABORTED, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE}
_LASTING = ("subprocess.Popen", "socket.connect")


@dataclass(frozen=True, kw_only=True)
class Ward:
    """A volume on a node of its own, whose csi-host is killed."""

    cluster: DevCluster
    kit: Kit

    def steps(self) -> list[NodeKill]:
        """Go through the volume's life unharmed, and return every way in which it can be cut off."""
        found = []
        with self._served() as (process, kit):
            for rpc, call in zip(RPCS, _calls(kit), strict=True):
                process.arm(NodeKill(rpc=rpc, step=_NEVER))
                call()
                for number, step in enumerate(process.steps(), start=1):
                    found.append(NodeKill(rpc=rpc, step=number))
                    if step.startswith(_LASTING) and "blkid" not in step:
                        found.append(NodeKill(rpc=rpc, step=number, is_during=True))
        self._assert_clean()
        return found

    def live_through(self, kill: NodeKill) -> bool:
        """Have csi-host killed, and a new one go on; return whether it was killed. Raises AssertionError."""
        try:
            return self._live_through(kill)
        except BaseException as error:
            error.add_note(f"killed at {kill}")
            raise

    def _live_through(self, kill: NodeKill) -> bool:
        begun = RPCS.index(kill.rpc)
        with self._served() as (process, kit):
            for call in _calls(kit)[:begun]:
                _insist(call)
            if begun in {1, 2} and not self._is_block:
                (kit.staged / "file").write_text("data")
            process.arm(kill)
            with suppress(grpc.RpcError):
                _calls(kit)[begun]()
            is_killed = process.is_killed()
        with self._served() as (_, kit):
            # The same call again, or the pod is gone and kubelet takes everything away.
            if kill.step % 2:
                _insist(_calls(kit)[begun])
                if begun == 0:
                    _insist(kit.publish)
                if begun == 1 and not self._is_block:
                    assert (kit.target() / "file").read_text() == "data"
            _insist(kit.unpublish)
            _insist(kit.unstage)
            self._assert_clean()
            if kill.rpc == "NodeStageVolume" and kill.is_during and not self._is_block:
                _insist(kit.stage)
                (kit.staged / "file").write_text("data")
                _insist(kit.unstage)
                self._assert_clean()
        return is_killed

    @contextmanager
    def _served(self) -> Iterator[tuple[NodeVictim, Kit]]:
        """Start csi-host, and yield it with the volume's calls to it."""
        orders = NodeOrders(directory=self.kit.directory, clusters_file=self.cluster.clusters_file)
        with node_victim(orders) as process, process.node() as stub:
            rig = replace(self.kit.rig, served=replace(self.kit.rig.served, node=stub))
            yield process, replace(self.kit, rig=rig)

    def _assert_clean(self) -> None:
        """Raise AssertionError when anything is left of the volume on this machine."""
        assert not self.kit.target().exists()
        assert list(self.kit.staging.iterdir()) == []
        assert left_of_image(self.kit.image, self.kit.volume.volume_id) == []
        Machine(directory=self.kit.directory).assert_clean()

    @property
    def _is_block(self) -> bool:
        return self.kit.capability.HasField("block")


def _calls(kit: Kit) -> list[Callable[[], object]]:
    """Return kubelet's calls for a pod's life, in the order of RPCS."""
    return [kit.stage, kit.publish, kit.unpublish, kit.unstage]


def _insist(call: Callable[[], object]) -> None:
    """Repeat a call as kubelet does, until it succeeds or there is no hope."""
    for tries_left in reversed(range(_TRIES)):
        try:
            call()
        except grpc.RpcError as error:
            if error.code() not in _NOT_FINAL or not tries_left:
                raise
            threading.Event().wait(_PAUSE_SECONDS)
        else:
            return
