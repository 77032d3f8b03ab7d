"""Both sides of a power cut, run inside: volumes in use before it, and kubelet's calls after it.

kubelet's directory is in the shared directory, so it is there after the cut; mounts, maps and daemons are not.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from csi_host.node.mounts import read_mounts
from csi_host.node.stats import volume_stats
from csi_host.process import run
from csi_host.proto import csi_pb2
from csi_host_rbd.testing.fast_luks import fast_luks
from csi_host_rbd.testing.node_kit import Kit, Node
from csi_host_rbd.testing.pools import PoolView
from csi_host_rbd.testing.rig import block, mounted, rbd_rig
from csi_host_vm.cluster import ClusterOutside
from csi_host_vm.machine import INSIDE

BEFORE, AFTER = "before", "after"
# By what has become of the pod while the machine was down, with the capability and the class's parameters.
_VOLUMES: dict[str, tuple[csi_pb2.VolumeCapability, dict[str, str]]] = {
    "stays-mounted": (mounted(fs_type="ext4"), {"mounter": "rbd", "encrypted": "true"}),
    "stays-block": (block(), {"mounter": "rbd-nbd"}),
    "gone-mounted": (mounted(fs_type="ext4"), {"mounter": "rbd-nbd"}),
    "gone-block": (block(), {"mounter": "rbd"}),
}
_BYTES = 320 * 1024**2
# A watch ends 30 s after its last sign of life.
_WATCH_SECONDS = 90.0


@contextmanager
def _node(share: Path, cluster: Path) -> Iterator[Node]:
    directory = share / "node"
    directory.mkdir(exist_ok=True)
    pool = PoolView(cluster=ClusterOutside(cluster, share), name="rbd")
    with rbd_rig(pool, directory, volume_stats=volume_stats, run=fast_luks(run)) as rig:
        rig.secrets["encryptionPassphrase"] = "the class's secret"
        yield Node(rig=rig, directory=directory)


def before(share: Path, cluster: Path) -> None:
    """Leave volumes staged, published and written."""
    made = {}
    with _node(share, cluster) as node:
        for name, (capability, parameters) in _VOLUMES.items():
            kit = node.make_volume(capability, size_bytes=_BYTES, **parameters)
            kit.stage()
            _write(kit.publish(name), name)
            made[name] = kit.volume.SerializeToString().hex()
        (share / "volumes.json").write_text(json.dumps(made), encoding="utf-8")


def after(share: Path, cluster: Path) -> None:
    """Call for every volume what kubelet calls after a reboot; raises AssertionError when something is left."""
    made: dict[str, str] = json.loads((share / "volumes.json").read_text(encoding="utf-8"))
    with _node(share, cluster) as node:
        for name, volume in made.items():
            kit = node.kit_for(csi_pb2.Volume.FromString(bytes.fromhex(volume)), _VOLUMES[name][0])
            if not kit.target(name).exists():
                raise AssertionError(f"{name}: the directory was not kept, so this tests nothing")
            if name.startswith("stays"):
                kit.stage()
                if (found := _read(kit.publish(name))) != name:
                    raise AssertionError(f"{name}: reads {found!r} after the reboot")
            kit.unpublish(name)
            kit.unstage()
            if left := [str(path) for path in (kit.target(name), *kit.staging.iterdir()) if path.exists()]:
                raise AssertionError(f"{name}: left behind: {left}")
            _delete(node, kit)
    left = [mount.mount_point for mount in read_mounts() if str(share / "node") in mount.mount_point]
    if left := [
        *left,
        *map(str, Path("/sys/bus/rbd/devices").iterdir()),
        *map(str, Path("/sys/block").glob("nbd*/pid")),
    ]:
        raise AssertionError(f"left behind: {left}")


def _delete(node: Node, kit: Kit) -> None:
    # The machine that lost its power has the images open for as long as the OSD believes in it.
    until = time.monotonic() + _WATCH_SECONDS
    while True:
        try:
            node.rig.delete(kit.volume.volume_id)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.FAILED_PRECONDITION or time.monotonic() > until:
                raise
        else:
            return


def _write(target: Path, text: str) -> None:
    with (target if target.is_block_device() else target / "file").open("wb") as file:
        file.write(text.encode().ljust(4096))
        os.fsync(file.fileno())


def _read(target: Path) -> str:
    with (target if target.is_block_device() else target / "file").open("rb") as file:
        return file.read(4096).decode().rstrip()


def main() -> None:
    """Run one side, and say how it ended in a file of the shared directory."""
    share, (side, cluster) = Path(os.environ[INSIDE]), sys.argv[1:]
    try:
        {BEFORE: before, AFTER: after}[side](share, Path(cluster))
    except Exception:  # noqa: BLE001 - whatever it is, the test outside is to show it
        outcome = traceback.format_exc()
    else:
        outcome = "ok"
    unfinished = share / f"{side}.unfinished"
    unfinished.write_text(outcome, encoding="utf-8")
    unfinished.rename(share / side)


if __name__ == "__main__":
    main()
