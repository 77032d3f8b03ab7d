"""Encrypted volumes with the kernel's own dm-crypt, beside their whole life (test_life.py)."""

from pathlib import Path

import pytest

from csi_host.process import run
from csi_host.proto import csi_pb2
from csi_host_rbd.testing.node_kit import Kit, Node
from csi_host_rbd.testing.rig import mounted

pytestmark = [pytest.mark.ceph, pytest.mark.root]

MIB = 1024**2


def make(node: Node, capability: csi_pb2.VolumeCapability | None = None, *, mounter: str = "rbd") -> Kit:
    return node.make_volume(
        capability or mounted(fs_type="ext4"), size_bytes=96 * MIB, encrypted="true", mounter=mounter
    )


def mappings() -> list[Path]:
    return sorted(Path("/sys/block").glob("dm-*"))


def below(mapping: Path) -> str:
    (device,) = (mapping / "slaves").iterdir()
    return device.name


def lose_mount(kit: Kit) -> None:
    """What a crash after the mapping was made leaves."""
    run(["umount", str(kit.staged)], timeout=60)


def test_a_mapping_that_a_crash_left_is_used_again_and_taken_away(node: Node) -> None:
    kit = make(node)
    kit.stage(timeout=300)
    (kit.staged / "file").write_text("data")
    (mapping,) = mappings()
    lose_mount(kit)
    kit.stage(timeout=300)
    assert mappings() == [mapping]
    assert (kit.staged / "file").read_text() == "data"
    lose_mount(kit)
    kit.unstage()
    assert mappings() == []


def test_a_mapping_whose_device_went_is_closed_and_opened_on_the_new_one(node: Node) -> None:
    kit = make(node)
    kit.stage(timeout=300)
    (kit.staged / "file").write_text("data")
    lose_mount(kit)
    (mapping,) = mappings()
    old = below(mapping)
    run(["rbd", "unmap", "-o", "noudev,force", f"/dev/{old}"], timeout=60)
    kit.stage(timeout=300)
    (mapping,) = mappings()
    assert (kit.staged / "file").read_text() == "data"
    assert below(mapping).startswith("rbd")


def test_unstaging_without_a_stash_closes_and_detaches(node: Node) -> None:
    kit = make(node)
    kit.stage(timeout=300)
    (kit.staging / "image-meta.json").unlink()
    kit.unstage()
    assert mappings() == []
    assert list(Path("/sys/bus/rbd/devices").iterdir()) == []
