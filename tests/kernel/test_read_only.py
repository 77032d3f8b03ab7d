"""Readers of what was restored from a snapshot, with the kernel's own client and with nbd."""

import uuid

import pytest

from csi_host.node.devices import is_read_only
from csi_host.node.mounts import mount_at
from csi_host.proto import csi_pb2
from csi_host_rbd.testing.node_kit import Kit, Node
from csi_host_rbd.testing.rig import block, mounted

pytestmark = [pytest.mark.ceph, pytest.mark.root]

MODE = csi_pb2.VolumeCapability.AccessMode
SIZE = csi_pb2.CapacityRange(required_bytes=96 * 1024**2)


def restored(node: Node, kit: Kit, capability: csi_pb2.VolumeCapability) -> Kit:
    snapshot = node.rig.snapshot(kit.volume.volume_id, f"snapshot-{uuid.uuid4()}")
    parameters = node.rig.parameters(mounter=kit.volume.volume_context["mounter"])
    volume = node.rig.restore(snapshot.snapshot_id, f"pvc-{uuid.uuid4()}", capacity_range=SIZE, parameters=parameters)
    return node.kit_for(volume, capability)


@pytest.mark.parametrize("mounter", ["rbd", "rbd-nbd"])
def test_many_nodes_may_read_a_snapshot_s_filesystem_and_none_writes(node: Node, mounter: str) -> None:
    source = node.make_volume(mounted(fs_type="ext4"), size_bytes=SIZE.required_bytes, mounter=mounter)
    source.stage()
    (source.staged / "file").write_text("data")
    source.unstage()
    reader = restored(node, source, mounted(MODE.MULTI_NODE_READER_ONLY, "ext4"))
    reader.stage()
    target = reader.publish()
    assert (target / "file").read_text() == "data"
    mount = mount_at(target)
    assert mount is not None
    assert is_read_only(mount.source)
    with pytest.raises(OSError, match="Read-only"):
        (target / "file").write_text("x")


@pytest.mark.parametrize("mounter", ["rbd", "rbd-nbd"])
def test_a_reader_s_block_device_takes_no_writes(node: Node, mounter: str) -> None:
    source = node.make_volume(block(), size_bytes=SIZE.required_bytes, mounter=mounter)
    reader = restored(node, source, block(MODE.MULTI_NODE_READER_ONLY))
    reader.stage()
    target = reader.publish()
    assert is_read_only(target)
    with pytest.raises(PermissionError), target.open("r+b", buffering=0) as device:
        device.write(bytes(4096))
