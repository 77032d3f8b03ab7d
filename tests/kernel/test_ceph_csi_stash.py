"""A volume that ceph-csi has staged, by its rules and with its stash, is taken over while it is mounted."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from csi_host.node.devices import size_bytes
from csi_host.node.stats import volume_stats
from csi_host.process import run
from csi_host.proto import csi_pb2
from csi_host_rbd.devcluster import DevCluster
from csi_host_rbd.node.stash import STASH_NAME
from csi_host_rbd.testing.node_kit import GIB, Kit, Node
from csi_host_rbd.testing.pools import PoolView
from csi_host_rbd.testing.rig import block, mounted, rbd_rig

pytestmark = [pytest.mark.ceph, pytest.mark.root]

MODE = "ms_mode=prefer-crc"
SECONDS = 300.0


@pytest.fixture
def node(ceph: DevCluster) -> Iterator[Node]:
    directory = Path(tempfile.mkdtemp(prefix="csi-n-"))
    with rbd_rig(PoolView(cluster=ceph, name=ceph.pool), directory, volume_stats=volume_stats) as rig:
        one = Node(rig=rig, directory=directory)
        yield one
        one.clear()
    shutil.rmtree(directory)


def mapped() -> list[str]:
    return [(entry / "name").read_text().strip() for entry in Path("/sys/bus/rbd/devices").iterdir()]


def stage_as_ceph_csi(kit: Kit, ceph: DevCluster, stash: dict[str, Any]) -> None:
    """Map, format and mount as ceph-csi does (noudev, the target below the staging path), and leave its stash."""
    rbd = ["rbd", "--conf", str(ceph.ceph_conf)]
    options = ["--device-type", "krbd", "--options", "noudev", "--options", MODE]
    device = run([*rbd, "map", f"{kit.rig.pool.name}/{kit.image}", *options], timeout=SECONDS).stdout.strip()
    kit.staging.mkdir(parents=True)
    if kit.capability.HasField("block"):
        kit.staged.touch(0o600)
        run(["mount", "--bind", device, str(kit.staged)], timeout=60)
    else:
        run(["mkfs.ext4", "-m0", "-Enodiscard,lazy_itable_init=1,lazy_journal_init=1", device], timeout=SECONDS)
        kit.staged.mkdir(0o750)
        run(["mount", "-t", "ext4", "-o", "_netdev,defaults", device, str(kit.staged)], timeout=60)
    (kit.staging / STASH_NAME).write_text(json.dumps(stash))


def stash_of(kit: Kit, version: int) -> dict[str, Any]:
    """Return the stash as ceph-csi writes it: version 2 until its 3.0, version 3 since."""
    oldest = {"Version": 2, "pool": kit.rig.pool.name, "image": kit.image, "accessType": False, "encrypted": False}
    if version == 2:
        return oldest
    newer = {"radosNamespace": "", "unmapOptions": "", "device": "", "logDir": "/var/log/ceph"}
    return {**oldest, **newer, "Version": 3, "logFileStrategy": "remove"}


@pytest.mark.parametrize("capability", [mounted(fs_type="ext4"), block()], ids=["ext4", "block"])
@pytest.mark.parametrize("version", [2, 3])
def test_a_volume_that_ceph_csi_staged_is_published_grown_and_unstaged(
    node: Node, ceph: DevCluster, capability: csi_pb2.VolumeCapability, version: int
) -> None:
    kit = node.make_volume(capability, mounter="rbd", mapOptions=f"krbd:{MODE}")
    stage_as_ceph_csi(kit, ceph, stash_of(kit, version))
    kit.stage(timeout=SECONDS)
    target = kit.publish()
    if not capability.HasField("block"):
        (target / "file").write_text("data")
    kit.grow_image(2 * GIB)
    assert kit.expand(2 * GIB) == 2 * GIB
    if capability.HasField("block"):
        assert size_bytes(target) == 2 * GIB
    else:
        assert volume_stats(target).bytes is not None
        assert (target / "file").read_text() == "data"
    kit.unpublish()
    assert not target.exists()
    kit.unstage()
    assert list(kit.staging.iterdir()) == []
    assert kit.image not in mapped()
    kit.stage(timeout=SECONDS)
    if not capability.HasField("block"):
        assert (kit.staged / "file").read_text() == "data"
    assert kit.image in mapped()
    kit.unstage()
    assert kit.image not in mapped()
