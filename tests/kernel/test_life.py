"""A volume's whole life on a node by every mounter that needs the kernel's modules, plain and encrypted."""

import hashlib
import os
from pathlib import Path

import pytest

from csi_host.node.devices import size_bytes
from csi_host.node.mounts import mount_at
from csi_host_rbd.testing.node_kit import Kit, Node
from csi_host_rbd.testing.rig import block, mounted

pytestmark = [pytest.mark.ceph, pytest.mark.root]

MIB = 1024**2
SIZE = 320 * MIB
GROWN = 448 * MIB
# An encrypted volume's header, which is a part of its image.
HEADER = 16 * MIB
WRITTEN = 3 * MIB
DEVICES = {"rbd": "rbd", "rbd-nbd": "nbd"}


def make_volume(node: Node, mounter: str, kind: str, *, is_encrypted: bool) -> Kit:
    parameters = {"mounter": mounter} | ({"encrypted": "true"} if is_encrypted else {})
    capability = block() if kind == "block" else mounted(fs_type=kind)
    return node.make_volume(capability, size_bytes=SIZE, **parameters)


def write(place: Path, *, is_block: bool) -> str:
    """Write what does not compress, and return its checksum."""
    content = os.urandom(WRITTEN)
    with place.open("r+b") if is_block else (place / "file").open("wb") as file:
        file.write(content)
        os.fsync(file.fileno())
    return hashlib.sha256(content).hexdigest()


def checksum(place: Path, *, is_block: bool) -> str:
    with (place if is_block else place / "file").open("rb") as file:
        return hashlib.sha256(file.read(WRITTEN)).hexdigest()


def shown_bytes(place: Path, *, is_block: bool) -> int:
    if is_block:
        return size_bytes(place)
    found = os.statvfs(place)
    return found.f_blocks * found.f_frsize


def device_below(target: Path, *, is_block: bool, is_encrypted: bool) -> str:
    """Return the name of the device that the volume is attached as."""
    if is_block:
        number = target.stat().st_rdev
        name = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve().name
    else:
        mount = mount_at(target)
        assert mount is not None
        name = Path(mount.source).resolve().name
    if not is_encrypted:
        return name
    assert name.startswith("dm-")
    (below,) = Path("/sys/block", name, "slaves").iterdir()
    return below.name


@pytest.mark.parametrize("is_encrypted", [False, True], ids=["plain", "luks"])
@pytest.mark.parametrize("kind", ["ext4", "xfs", "block"])
@pytest.mark.parametrize("mounter", DEVICES)
def test_what_is_written_survives_everything(node: Node, mounter: str, kind: str, *, is_encrypted: bool) -> None:
    is_block = kind == "block"
    kit = make_volume(node, mounter, kind, is_encrypted=is_encrypted)
    kit.stage()
    target = kit.publish()
    assert device_below(target, is_block=is_block, is_encrypted=is_encrypted).startswith(DEVICES[mounter])
    written = write(target, is_block=is_block)
    small = shown_bytes(target, is_block=is_block)
    assert checksum(target, is_block=is_block) == written
    kit.grow_image(GROWN)
    assert kit.expand(GROWN) in {GROWN, GROWN - HEADER}
    assert shown_bytes(target, is_block=is_block) > small + (GROWN - SIZE) * 0.8
    assert checksum(target, is_block=is_block) == written
    kit.unpublish()
    kit.unstage()
    assert list(kit.staging.iterdir()) == []
    assert kit.watchers() == 0
    kit.stage()
    assert checksum(kit.publish(), is_block=is_block) == written
    kit.unpublish()
    kit.unstage()
    node.rig.delete(kit.volume.volume_id)
    assert kit.image not in node.rig.pool.images()
