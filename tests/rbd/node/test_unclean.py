"""Whatever an unclean end left on a node, kubelet's own order of calls succeeds and nothing stays behind."""

import os
import shutil
from pathlib import Path

import pytest

from csi_host.node.mounts import mount_at
from csi_host.node.stats import volume_stats
from csi_host.process import run
from csi_host.proto import csi_pb2
from csi_host.testing.device_nodes import remove_loop_device, spare_loop_device
from csi_host_rbd.node.stash import STASH_NAME
from csi_host_rbd.testing.node_kit import Kit, Node, Refused
from csi_host_rbd.testing.rig import block, mounted, rbd_rig

pytestmark = [pytest.mark.ceph, pytest.mark.root, pytest.mark.usefixtures("short_watches")]

GIB = 1024**3


def unmount(path: Path) -> None:
    run(["umount", str(path)], timeout=20)


@pytest.fixture
def written(node: Node) -> Kit:
    """A volume that has been staged, written and published, whose state a test then spoils."""
    kit = node.make_volume(mounted(fs_type="ext4"))
    kit.stage()
    (kit.publish() / "file").write_text("data")
    run(["sync", "--file-system", str(kit.target())], timeout=60)
    return kit


def assert_alive(kit: Kit) -> None:
    """Go through kubelet's calls for a pod that starts and ends."""
    kit.stage()
    assert (kit.publish() / "file").read_text() == "data"
    kit.unpublish()
    kit.unstage()
    assert list(kit.staging.iterdir()) == []


def test_a_killed_daemon_is_replaced_when_the_pod_starts_anew(node: Node, written: Kit) -> None:
    node.machine.kill_daemon()
    written.unpublish()
    assert_alive(written)


def test_a_killed_daemon_is_cleared_away(node: Node, written: Kit) -> None:
    node.machine.kill_daemon()
    written.unpublish()
    written.unstage()
    node.machine.assert_clean()


def test_a_killed_daemon_below_a_pod_says_what_to_do_and_nothing_is_forgotten(
    node: Node, written: Kit, refused: Refused
) -> None:
    node.machine.kill_daemon()
    with (written.target() / "new").open("wb") as file, pytest.raises(OSError, match="Input/output"):
        os.fsync(file.fileno())
    with refused("ABORTED", str(written.target()), "unpublish"):
        written.stage()
    assert mount_at(written.target()) is not None
    assert (written.staging / STASH_NAME).exists()
    written.unpublish()
    assert_alive(written)


def test_a_pod_whose_device_vanished_gets_the_new_one_at_the_same_target(node: Node, refused: Refused) -> None:
    kit = node.make_volume(block(csi_pb2.VolumeCapability.AccessMode.SINGLE_NODE_SINGLE_WRITER))
    kit.stage()
    target = kit.publish()
    run(["dd", f"of={target}", "bs=4096", "oflag=direct", "status=none"], timeout=60, stdin="kept" * 1024)
    with spare_loop_device():
        node.machine.kill_daemon()
        remove_loop_device(kit.loop())
        # Opening the pod's node would make the kernel add an empty loop device of that number.
        kit.stage()
    assert kit.publish() == target
    with target.open("rb") as device:
        assert device.read(4096) == b"kept" * 1024
    with refused("FAILED_PRECONDITION", str(target)):
        kit.publish("second")


def test_a_lost_stash_is_written_again(written: Kit) -> None:
    (written.staging / STASH_NAME).unlink()
    written.stage()
    assert (written.staging / STASH_NAME).exists()
    written.grow_image(2 * GIB)


def test_a_mounted_volume_without_a_stash_is_unstaged(node: Node, written: Kit) -> None:
    written.unpublish()
    (written.staging / STASH_NAME).unlink()
    written.unstage()
    node.machine.assert_clean()
    assert list(written.staging.iterdir()) == []


def test_a_block_volume_without_a_stash_is_unstaged(node: Node) -> None:
    kit = node.make_volume(block())
    kit.stage()
    (kit.staging / STASH_NAME).unlink()
    kit.unstage()
    node.machine.assert_clean()


def test_a_mounted_volume_with_a_damaged_stash_is_unstaged(node: Node, written: Kit) -> None:
    written.unpublish()
    (written.staging / STASH_NAME).write_text("{")
    written.unstage()
    node.machine.assert_clean()
    assert list(written.staging.iterdir()) == []


def test_a_mount_removed_behind_our_back_is_made_again(written: Kit) -> None:
    written.unpublish()
    unmount(written.staged)
    assert_alive(written)


def test_a_device_without_a_mount_is_detached(node: Node, written: Kit) -> None:
    written.unpublish()
    unmount(written.staged)
    written.unstage()
    node.machine.assert_clean()


def test_a_reboot_leaves_files_only_and_everything_goes_on(node: Node, written: Kit) -> None:
    written.unpublish()
    unmount(written.staged)
    device = written.loop()
    run(["losetup", "--detach", device], timeout=20)
    node.machine.kill_daemon()
    for place in node.machine.mounts():
        unmount(Path(place))
    shutil.rmtree(node.directory / "qemu")
    assert written.staged.is_dir()
    assert_alive(written)


def test_a_reboot_leaves_files_only_and_unstaging_clears_them(node: Node, written: Kit) -> None:
    written.unpublish()
    unmount(written.staged)
    run(["losetup", "--detach", written.loop()], timeout=20)
    node.machine.kill_daemon()
    for place in node.machine.mounts():
        unmount(Path(place))
    shutil.rmtree(node.directory / "qemu")
    written.unstage()
    assert list(written.staging.iterdir()) == []


def test_a_target_left_as_a_plain_directory_is_removed(written: Kit) -> None:
    unmount(written.target())
    written.unpublish()
    assert not written.target().exists()


def test_content_in_a_plain_staging_directory_is_not_deleted(written: Kit, refused: Refused) -> None:
    written.unpublish()
    written.unstage()
    written.staged.mkdir()
    (written.staged / "precious").write_text("x")
    with refused("FAILED_PRECONDITION", "precious"):
        written.unstage()
    assert (written.staged / "precious").exists()
    shutil.rmtree(written.staged)


def test_a_restart_of_csi_host_changes_nothing_for_the_volume(node: Node, written: Kit) -> None:
    (written.target() / "open").write_text("before")
    with rbd_rig(node.rig.pool, node.directory, volume_stats=volume_stats) as successor:
        (written.target() / "open").write_text("after")
        kit = type(written)(
            rig=successor, directory=written.directory, volume=written.volume, capability=written.capability
        )
        kit.stage()
        kit.publish()
        kit.grow_image(2 * GIB)
        assert (kit.target() / "open").read_text() == "after"
        kit.unpublish()
        kit.unstage()
    node.machine.assert_clean()


@pytest.mark.parametrize("version", [2, 3])
def test_a_stash_that_names_another_mounter_than_the_device_has_is_put_right(
    node: Node, written: Kit, version: int
) -> None:
    written.unpublish()
    theirs = {
        2: f'{{"Version":2,"pool":"rbd","image":"{written.image}","accessType":false,"encrypted":false}}',
        3: f'{{"Version":3,"pool":"rbd","radosNamespace":"","image":"{written.image}","unmapOptions":"",'
        '"accessType":false,"encrypted":false,"device":"","logDir":"/var/log/ceph","logFileStrategy":"remove"}',
    }
    (written.staging / STASH_NAME).write_text(theirs[version])
    written.stage()
    assert (written.publish() / "file").read_text() == "data"
    written.unpublish()
    written.unstage()
    node.machine.assert_clean()
