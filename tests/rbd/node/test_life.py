"""A volume's whole life on a node, with real mounts, as kubelet calls for it."""

import hashlib
import json
import os
import stat
from pathlib import Path

import grpc
import pytest

from csi_host.node.devices import size_bytes
from csi_host.node.mounts import Mount, mount_at
from csi_host.process import run
from csi_host.proto import csi_pb2
from csi_host_common_node.resize import effective_capabilities
from csi_host_rbd.node.marks import MARK_KEY
from csi_host_rbd.node.stash import STASH_NAME
from csi_host_rbd.testing.node_kit import Kit, Node, Refused
from csi_host_rbd.testing.rig import block, mounted

pytestmark = [pytest.mark.ceph, pytest.mark.root]

MIB = 1024**2
GIB = 1024**3
CAP_SYS_RESOURCE = 24


def mounted_at(path: Path) -> Mount:
    mount = mount_at(path)
    assert mount is not None
    return mount


def write_file(path: Path) -> str:
    """Write a file that does not compress, and return its checksum."""
    content = os.urandom(8 * MIB)
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def filesystem_bytes(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_blocks * found.f_frsize


def may_grow_mounted_ext() -> bool:
    return bool(effective_capabilities() >> CAP_SYS_RESOURCE & 1)


@pytest.mark.parametrize("fs_type", ["ext4", "ext3", "xfs", "btrfs"])
def test_a_file_survives_everything_that_is_done_with_its_volume(node: Node, fs_type: str) -> None:
    kit = node.make_volume(mounted(fs_type=fs_type))
    kit.stage()
    target = kit.publish()
    assert mounted_at(target).fs_type == fs_type
    written = write_file(target / "file")
    grow(kit, 2 * GIB, fs_type)
    assert checksum(target / "file") == written
    kit.unpublish()
    assert not target.exists()
    kit.unstage()
    assert list(kit.staging.iterdir()) == []
    node.machine.assert_clean()
    assert kit.watchers() == 0
    kit.stage()
    target = kit.publish()
    assert checksum(target / "file") == written
    assert filesystem_bytes(target) > 1.8 * GIB


def grow(kit: Kit, size: int, fs_type: str) -> None:
    """Grow as kubelet does. A mounted ext needs a capability that not every machine gives; staging grows it then."""
    kit.grow_image(size)
    if fs_type in {"xfs", "btrfs"} or may_grow_mounted_ext():
        assert kit.expand(size) == size
        assert filesystem_bytes(kit.target()) > 1.8 * GIB
        return
    with pytest.raises(grpc.RpcError) as caught:
        kit.expand(size)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "CAP_SYS_RESOURCE" in str(caught.value.details())
    assert size_bytes(kit.loop()) == size


def test_a_block_volume_keeps_its_bytes_through_everything(node: Node) -> None:
    kit = node.make_volume(block())
    kit.stage()
    target = kit.publish()
    assert stat.S_ISBLK(target.stat().st_mode)
    content = os.urandom(4 * MIB)
    with target.open("r+b") as device:
        device.seek(100 * MIB)
        device.write(content)
    kit.grow_image(2 * GIB)
    assert kit.expand(2 * GIB) == 2 * GIB
    assert size_bytes(target) == 2 * GIB
    kit.unpublish()
    assert not target.exists()
    kit.unstage()
    assert list(kit.staging.iterdir()) == []
    node.machine.assert_clean()
    kit.stage()
    with kit.publish().open("rb") as device:
        device.seek(100 * MIB)
        assert device.read(4 * MIB) == content
    assert MARK_KEY not in kit.metadata()


def test_the_staging_directory_looks_as_ceph_csi_leaves_it(node: Node) -> None:
    kit = node.make_volume(mounted(fs_type="xfs"))
    kit.stage()
    assert {path.name for path in kit.staging.iterdir()} == {kit.volume.volume_id, STASH_NAME}
    stash = json.loads((kit.staging / STASH_NAME).read_text())
    assert stash["Version"] == 3
    assert stash["pool"] == node.rig.pool.name
    assert stash["image"] == kit.image
    assert stash["encrypted"] is False
    assert stat.S_IMODE((kit.staging / STASH_NAME).stat().st_mode) == 0o600
    kit.unstage()
    kit.staging.mkdir(exist_ok=True)
    kit = node.kit_for(kit.volume, block())
    kit.stage()
    assert kit.staged.is_file() or stat.S_ISBLK(kit.staged.stat().st_mode)
    assert mount_at(kit.staged) is not None


def test_every_call_can_be_repeated(node: Node) -> None:
    kit = node.make_volume(mounted(fs_type="xfs"))
    for _ in range(2):
        kit.stage()
    for _ in range(2):
        target = kit.publish()
    assert len(node.machine.daemons()) == 1
    assert len([place for place in node.machine.mounts() if place == str(target)]) == 1
    for _ in range(2):
        kit.unpublish()
    for _ in range(2):
        kit.unstage()
    node.machine.assert_clean()


def test_what_was_never_there_is_unpublished_and_unstaged_with_success(node: Node) -> None:
    kit = node.make_volume()
    kit.unpublish()
    kit.unstage()
    kit.unstage(volume_id="no such volume", staging_target_path="/nonexistent/path")
    kit.unstage(volume_id="../../etc", staging_target_path=str(node.directory))
    assert Path("/etc").is_dir()


def test_two_pods_of_a_node_share_a_volume(node: Node) -> None:
    kit = node.make_volume(mounted(fs_type="xfs"))
    kit.stage()
    first, second = kit.publish("one"), kit.publish("two")
    (first / "file").write_text("shared")
    assert (second / "file").read_text() == "shared"
    kit.unpublish("one")
    assert (second / "file").read_text() == "shared"


def test_stats_tell_bytes_inodes_and_condition(node: Node) -> None:
    kit = node.make_volume(mounted(fs_type="xfs"))
    kit.stage()
    kit.publish()
    answer = kit.stats()
    assert [usage.unit for usage in answer.usage] == [1, 2]
    assert 0.9 * GIB < answer.usage[0].total <= GIB
    assert not answer.volume_condition.abnormal


def test_stats_of_a_block_volume_tell_its_size(node: Node) -> None:
    kit = node.make_volume(block())
    kit.stage()
    kit.publish()
    (usage,) = kit.stats().usage
    assert usage.total == GIB


def test_the_filesystem_is_as_big_as_an_image_that_grew_while_it_was_away(node: Node) -> None:
    for fs_type in ("ext4", "xfs", "btrfs"):
        kit = node.make_volume(mounted(fs_type=fs_type))
        kit.stage()
        kit.unstage()
        kit.grow_image(2 * GIB)
        kit.stage()
        assert filesystem_bytes(kit.staged) > 1.8 * GIB


def test_growing_finds_the_volume_by_its_target_alone(node: Node) -> None:
    kit = node.make_volume(mounted(fs_type="xfs"))
    kit.stage()
    kit.publish()
    kit.grow_image(2 * GIB)
    assert kit.expand(2 * GIB, staging_target_path="") == 2 * GIB


def test_growing_a_block_volume_finds_it_by_its_target_alone(node: Node) -> None:
    kit = node.make_volume(block())
    kit.stage()
    kit.publish()
    kit.grow_image(2 * GIB)
    assert kit.expand(2 * GIB, staging_target_path="") == 2 * GIB


def test_mkfs_options_of_the_class_replace_the_defaults(node: Node) -> None:
    kit = node.make_volume(mounted(fs_type="ext4"), mkfsOptions="-m0 -L chosen")
    kit.stage()
    label = run(["blkid", "--probe", "--match-tag", "LABEL", "--output", "value", kit.loop()], timeout=20).stdout
    assert label.strip() == "chosen"


def test_mkfs_options_that_cannot_be_leave_no_mark_and_matter_only_where_something_is_formatted(
    node: Node, refused: Refused
) -> None:
    kit = node.make_volume(mounted(fs_type="ext4"))
    wrong = {**kit.volume.volume_context, "mkfsOptions": "-J device=/dev/null"}
    with refused("INVALID_ARGUMENT", "volume_context[mkfsOptions]", "/dev/null"):
        kit.stage(volume_context=wrong)
    assert MARK_KEY not in kit.metadata()
    kit.stage()
    kit.unstage()
    kit.stage(volume_context=wrong)


def test_mount_flags_are_used_whole(node: Node) -> None:
    capability = mounted(fs_type="ext4")
    capability.mount.mount_flags.extend(["noatime", "commit=7"])
    kit = node.make_volume(capability)
    kit.stage()
    mount = mounted_at(kit.staged)
    assert "noatime" in mount.options
    assert "commit=7" in mount.super_options
    assert "noatime" in mounted_at(kit.publish()).options


def test_the_node_says_what_it_can(node: Node) -> None:
    answer = node.rig.served.node.NodeGetCapabilities(csi_pb2.NodeGetCapabilitiesRequest())
    names = {csi_pb2.NodeServiceCapability.RPC.Type.Name(one.rpc.type) for one in answer.capabilities}
    assert names == {
        "STAGE_UNSTAGE_VOLUME",
        "GET_VOLUME_STATS",
        "EXPAND_VOLUME",
        "VOLUME_CONDITION",
        "SINGLE_NODE_MULTI_WRITER",
    }
