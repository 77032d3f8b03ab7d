"""Filesystems between volumes and nodes: clones beside their source, readers, growth that was cut off, programs."""

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from csi_host.process import run
from csi_host.proto import csi_pb2
from csi_host_common_node.programs import PACKAGES, needed_for
from csi_host_rbd.node.marks import MARK_KEY
from csi_host_rbd.testing.node_kit import FakeProgram, ImageOf, Kit, Node, Refused, Unchanged
from csi_host_rbd.testing.rig import block, mounted

pytestmark = [pytest.mark.ceph, pytest.mark.root]

MIB = 1024**2
GIB = 1024**3
MODE = csi_pb2.VolumeCapability.AccessMode


def filesystem_bytes(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_blocks * found.f_frsize


def with_flags(capability: csi_pb2.VolumeCapability, *flags: str) -> csi_pb2.VolumeCapability:
    capability.mount.mount_flags.extend(flags)
    return capability


def written(node: Node, fs_type: str) -> Kit:
    """A volume that is mounted, with a file whose last bytes are in the journal for all that anybody knows."""
    kit = node.make_volume(mounted(fs_type=fs_type))
    kit.stage()
    write_and_sync(kit.publish() / "file", "data")
    return kit


def write_and_sync(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def restored(node: Node, kit: Kit, capability: csi_pb2.VolumeCapability) -> Kit:
    snapshot = node.rig.snapshot(kit.volume.volume_id, f"snapshot-{uuid.uuid4()}")
    return node.kit_for(node.rig.restore(snapshot.snapshot_id, f"pvc-{uuid.uuid4()}"), capability)


@pytest.mark.parametrize("fs_type", ["ext4", "xfs", "btrfs"])
def test_a_bigger_clone_is_mounted_beside_its_source_and_fills_its_image(node: Node, fs_type: str) -> None:
    source = written(node, fs_type)
    capacity = csi_pb2.CapacityRange(required_bytes=2 * GIB)
    volume = node.rig.clone(source.volume.volume_id, f"pvc-{uuid.uuid4()}", capacity_range=capacity)
    clone = node.kit_for(volume, mounted(fs_type=fs_type))
    clone.stage()
    target = clone.publish("another pod")
    assert (target / "file").read_text() == "data"
    assert filesystem_bytes(target) > 1.8 * GIB
    write_and_sync(target / "file", "the clone's own")
    assert (source.target() / "file").read_text() == "data"
    assert filesystem_bytes(source.target()) < 1.1 * GIB
    clone.unpublish("another pod")
    clone.unstage()
    write_and_sync(source.target() / "file", "the source's own")


@pytest.mark.parametrize(("fs_type", "flag"), [("ext4", "noload"), ("xfs", "norecovery")])
def test_readers_of_a_snapshot_with_an_unclean_journal_are_told_what_to_do(
    node: Node, refused: Refused, unchanged: Unchanged, fs_type: str, flag: str
) -> None:
    source = written(node, fs_type)
    reader = restored(node, source, mounted(MODE.MULTI_NODE_READER_ONLY, fs_type))
    is_unchanged = unchanged(reader)
    with refused("FAILED_PRECONDITION", "journal", flag, "ReadWriteOnce"):
        reader.stage()
    assert list(reader.staging.iterdir()) == []
    # Whoever wants it as it is gets that, and nothing is written.
    as_it_is = with_flags(mounted(MODE.MULTI_NODE_READER_ONLY, fs_type), flag)
    reader.stage(volume_capability=as_it_is)
    assert reader.publish("reader", volume_capability=as_it_is).is_dir()
    reader.unpublish("reader")
    reader.unstage()
    assert is_unchanged()
    # One reader alone may replay the journal, and after that there is nothing to replay.
    reader.stage(volume_capability=mounted(MODE.SINGLE_NODE_READER_ONLY, fs_type))
    assert (reader.staged / "file").read_text() == "data"
    reader.unstage()
    reader.stage()
    assert (reader.staged / "file").read_text() == "data"


@pytest.mark.parametrize("fs_type", ["ext4", "xfs", "btrfs"])
def test_two_nodes_read_what_was_restored_from_a_snapshot(
    node: Node, second_node: Node, unchanged: Unchanged, fs_type: str
) -> None:
    source = written(node, fs_type)
    source.unpublish()
    source.unstage()
    here = restored(node, source, mounted(MODE.MULTI_NODE_READER_ONLY, fs_type))
    there = second_node.kit_for(here.volume, here.capability)
    is_unchanged = unchanged(here)
    for kit in (here, there):
        kit.stage()
        target = kit.publish("reader", readonly=True)
        assert (target / "file").read_text() == "data"
        with pytest.raises(OSError, match="Read-only"):
            (target / "file").write_text("x")
    assert is_unchanged()


def test_two_nodes_see_each_others_writes_to_a_block_volume(node: Node, second_node: Node) -> None:
    here = node.make_volume(block(MODE.MULTI_NODE_MULTI_WRITER), imageFeatures="layering,exclusive-lock")
    there = second_node.kit_for(here.volume, here.capability)
    places = []
    for kit in (here, there):
        kit.stage()
        places.append(kit.publish("pod"))
    for turn in range(20):
        writer, reader = places if turn % 2 else reversed(places)
        write_here_and_read_there(writer, reader, turn)


def write_here_and_read_there(writer: Path, reader: Path, turn: int) -> None:
    """Write a page past the page cache on one node, and read it so on the other, as databases and hypervisors do."""
    page = chr(turn + 1) * 4096
    argv = ["dd", "bs=4096", "count=1", "conv=notrunc", "status=none"]
    run([*argv, f"of={writer}", "oflag=direct"], timeout=20, stdin=page)
    assert run([*argv, f"if={reader}", "iflag=direct"], timeout=20).stdout == page


@pytest.mark.parametrize(
    ("fs_type", "program"), [("ext4", "resize2fs"), ("ext3", "resize2fs"), ("xfs", "xfs_growfs"), ("btrfs", "btrfs")]
)
def test_a_growth_that_is_killed_goes_on_and_no_byte_is_lost(
    node: Node, fake_program: FakeProgram, directory: Path, fs_type: str, program: str
) -> None:
    kit = written(node, fs_type)
    content = os.urandom(8 * MIB)
    (kit.target() / "big").write_bytes(content)
    kit.unpublish()
    kit.unstage()
    real = run(["which", program], timeout=5).stdout.strip()
    for turn, delay in enumerate((0.001, 0.004, 0.01, 0.03), start=2):
        kit.grow_image(turn * GIB)
        fake_program(program, f'{real} "$@" & sleep {delay}; kill -9 $!; wait $!; exit 137')
        with pytest.raises(Exception, match="exit code 137"):
            kit.stage()
        (directory / "bin" / program).unlink()
        kit.stage()
        assert (kit.staged / "big").read_bytes() == content
        assert filesystem_bytes(kit.staged) > (turn - 0.2) * GIB
        kit.unstage()
    assert kit.metadata()[MARK_KEY] == f"formatted {fs_type}"


def spoil_resize_inode(node: Node, kit: Kit, image_of: ImageOf) -> None:
    """Leave an ext4 as a resize2fs that was killed leaves it: e2fsck does not repair it unasked."""
    file = node.directory / "copy"
    node.rig.pool.rbd("export", "--no-progress", kit.image, str(file))
    with file.open("rb") as content:
        content.seek(0)
        before = content.read(64 * MIB)
    for command in ("set_inode_field <7> block[DIND] 0", "set_super_value state 2"):
        run(["debugfs", "-w", "-R", command, str(file)], timeout=30)
    with file.open("rb") as content, image_of(kit) as image:
        after = content.read(64 * MIB)
        for offset in range(0, len(after), 4096):
            if after[offset : offset + 4096] != before[offset : offset + 4096]:
                image.write(after[offset : offset + 4096], offset)
    file.unlink()


def test_an_ext4_that_our_own_growth_left_half_done_is_repaired_and_any_other_damage_is_not(
    node: Node, refused: Refused, image_of: ImageOf, unchanged: Unchanged
) -> None:
    kit = written(node, "ext4")
    kit.unpublish()
    kit.unstage()
    spoil_resize_inode(node, kit, image_of)
    with refused("FAILED_PRECONDITION", "e2fsck", "by hand"):
        kit.stage()
    node.rig.pool.rbd("image-meta", "set", kit.image, MARK_KEY, "growing ext4")
    kit.stage()
    assert (kit.staged / "file").read_text() == "data"
    assert kit.metadata()[MARK_KEY] == "formatted ext4"
    kit.unstage()
    # What looks blank is not formatted under that mark either.
    node.rig.pool.rbd("image-meta", "set", kit.image, MARK_KEY, "growing ext4")
    with image_of(kit) as image:
        image.write(bytes(4096), 0)
    is_unchanged = unchanged(kit)
    with refused("FAILED_PRECONDITION", "growing ext4", "never formatted"):
        kit.stage()
    assert is_unchanged()


@pytest.fixture
def without(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have a path with every program that is known but one, or the usual path without ``nothing``."""

    path = os.environ["PATH"]

    def leave_out(program: str) -> None:
        programs = directory / f"without-{program}"
        programs.mkdir(exist_ok=True)
        for name in set(PACKAGES) - {program}:
            if found := shutil.which(name, path=path):
                (programs / name).unlink(missing_ok=True)
                (programs / name).symlink_to(found)
        monkeypatch.setenv("PATH", path if program == "nothing" else str(programs))

    return leave_out


@pytest.mark.parametrize("fs_type", ["ext4", "ext3", "xfs", "btrfs"])
def test_a_filesystem_whose_program_is_missing_is_refused_before_anything_is_touched(
    node: Node, refused: Refused, without: Callable[[str], None], fs_type: str
) -> None:
    kit = node.make_volume(mounted(fs_type=fs_type))
    for program in needed_for(fs_type):
        without(program)
        with refused("FAILED_PRECONDITION", program, f"Debian package {PACKAGES[program]}"):
            kit.stage()
        assert list(kit.staging.iterdir()) == []
        node.machine.assert_clean()
    without("nothing")
    assert kit.metadata() == {}
    kit.stage()


@pytest.mark.parametrize("program", ["qemu-storage-daemon", "losetup", "stat", "mount", "umount"])
def test_a_mounter_whose_program_is_missing_is_refused_before_anything_is_touched(
    node: Node, refused: Refused, without: Callable[[str], None], program: str
) -> None:
    kit = node.make_volume(block())
    without(program)
    with refused("FAILED_PRECONDITION", program, f"Debian package {PACKAGES[program]}"):
        kit.stage()
    assert list(kit.staging.iterdir()) == []
    node.machine.assert_clean()
    without("nothing")


def test_publishing_and_taking_away_name_the_program_that_is_missing_and_go_on_later(
    node: Node, refused: Refused, without: Callable[[str], None]
) -> None:
    kit = written(node, "ext4")
    for program in ("mount", "umount"):
        without(program)
        with refused("FAILED_PRECONDITION", program, "Debian package mount"):
            kit.publish("second")
        assert not kit.target("second").exists()
    with refused("FAILED_PRECONDITION", "umount", "Debian package mount"):
        kit.unpublish()
    without("losetup")
    kit.unpublish()
    with refused("FAILED_PRECONDITION", "losetup", "Debian package mount"):
        kit.unstage()
    without("nothing")
    kit.unstage()
    node.machine.assert_clean()


def test_a_volume_without_a_type_that_holds_no_filesystem_is_left_alone_and_named(
    node: Node, refused: Refused, unchanged: Unchanged
) -> None:
    raw = node.make_volume(block())
    raw.stage()
    run(["mkswap", raw.loop()], timeout=20)
    raw.unstage()
    is_unchanged = unchanged(raw)
    with refused("FAILED_PRECONDITION", "swap", "left as it is"):
        raw.stage(volume_capability=mounted(fs_type=""))
    assert is_unchanged()
    assert MARK_KEY not in raw.metadata()
