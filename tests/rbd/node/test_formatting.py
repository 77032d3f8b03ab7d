"""A node formats what is proven blank, once, and nothing else; what it refuses keeps every byte."""

import os
import struct
import threading
import zlib
from pathlib import Path

import grpc
import pytest

from csi_host.node.mounts import mount_at
from csi_host.process import run
from csi_host.proto import csi_pb2
from csi_host_rbd.node.marks import MARK_KEY
from csi_host_rbd.testing.node_kit import FakeProgram, ImageOf, Kit, Node, Refused, Unchanged, content
from csi_host_rbd.testing.rig import block, mounted

pytestmark = [pytest.mark.ceph, pytest.mark.root]

MIB = 1024**2
GIB = 1024**3

MODE = csi_pb2.VolumeCapability.AccessMode


def put(image_of: ImageOf, kit: Kit, offset: int, data: bytes) -> None:
    with image_of(kit) as image:
        image.write(data, offset)


def make_on_device(node: Node, kit: Kit, *argv: str) -> None:
    """Run a program on the image's device, outside of csi-host."""
    file = node.directory / "foreign"
    file.touch()
    with file.open("r+b") as sparse:
        sparse.truncate(GIB)
    run([*argv, str(file)], timeout=60)
    node.rig.pool.rbd("rm", "--no-progress", kit.image)
    node.rig.pool.cluster.rbd("import", "--no-progress", str(file), f"{node.rig.pool.name}/{kit.image}")


def test_a_new_volume_is_formatted_and_marked_before_it_is_mounted(node: Node) -> None:
    kit = node.make_volume(mounted(fs_type="xfs"))
    kit.stage()
    assert kit.metadata()[MARK_KEY] == "formatted xfs"


def test_a_volume_without_a_type_gets_ext4(node: Node) -> None:
    kit = node.make_volume(mounted(fs_type=""))
    kit.stage()
    mount = mount_at(kit.staged)
    assert mount is not None
    assert mount.fs_type == "ext4"


@pytest.mark.parametrize("offset", [0, 4096, 3 * MIB + 512, GIB - 512])
def test_data_without_a_signature_is_never_formatted(
    node: Node, refused: Refused, image_of: ImageOf, unchanged: Unchanged, offset: int
) -> None:
    kit = node.make_volume(mounted(fs_type="ext4"))
    put(image_of, kit, offset, b"precious")
    is_unchanged = unchanged(kit)
    with refused("FAILED_PRECONDITION", "data", "not formatted"):
        kit.stage()
    assert is_unchanged()
    assert MARK_KEY not in kit.metadata()
    assert list(kit.staging.iterdir()) == []
    node.machine.assert_clean()


def test_an_ext4_whose_superblock_was_wiped_is_never_formatted(
    node: Node, refused: Refused, image_of: ImageOf, unchanged: Unchanged
) -> None:
    kit = node.make_volume(mounted(fs_type="ext4"))
    kit.stage()
    kit.unstage()
    put(image_of, kit, 0, bytes(4096))
    is_unchanged = unchanged(kit)
    with refused("FAILED_PRECONDITION", "formatted ext4", "never formatted"):
        kit.stage()
    assert is_unchanged()
    # Not even where the mark was lost as well.
    node.rig.pool.rbd("image-meta", "remove", kit.image, MARK_KEY)
    with refused("FAILED_PRECONDITION", "data"):
        kit.stage()
    assert is_unchanged()


def test_a_formatted_volume_that_looks_blank_is_never_formatted(node: Node, refused: Refused) -> None:
    kit = node.make_volume(mounted(fs_type="ext4"))
    node.rig.pool.rbd("image-meta", "set", kit.image, MARK_KEY, "formatted xfs")
    with refused("FAILED_PRECONDITION", "formatted xfs"):
        kit.stage()
    node.rig.pool.rbd("image-meta", "set", kit.image, MARK_KEY, "a mark of a later version")
    with refused("FAILED_PRECONDITION", "a mark of a later version"):
        kit.stage()


BY_HAND = ("wipefs --no-act", "blkid --probe", "blkdiscard --zeroout", "another image")


ASK_FOR = ("Ask for ext4", "csi.storage.k8s.io/fstype")


@pytest.mark.parametrize(
    ("argv", "fs_type", "expected"),
    [
        (("mkfs.ext4", "-q"), "xfs", ("ext4", *ASK_FOR)),
        (("mkfs.ext2", "-q"), "ext4", ("ext2", *BY_HAND)),
        (("mkfs.ext2", "-q"), "", ("ext2", *BY_HAND)),
        (("mkswap",), "xfs", ("swap", *BY_HAND)),
    ],
)
def test_what_somebody_elses_program_made_is_left_alone_and_named_with_what_to_do(
    node: Node, unchanged: Unchanged, argv: tuple[str, ...], fs_type: str, expected: tuple[str, ...]
) -> None:
    kit = node.make_volume(mounted(fs_type=fs_type))
    make_on_device(node, kit, *argv)
    is_unchanged = unchanged(kit)
    words = refusal_of(kit)
    for word in ("left as it is", *expected):
        assert word in words
    assert ("Ask for" in words) is ("Ask for ext4" in expected)
    assert is_unchanged()
    node.machine.assert_clean()


def refusal_of(kit: Kit) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        kit.stage()
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    return str(caught.value.details())


# One partition of Linux' type in an old partition table, and the beginning of an encryption header.
PARTITIONS = bytes(446) + bytes.fromhex("00000000830000000008000000080000") + bytes(48) + b"\x55\xaa"
LUKS = b"LUKS\xba\xbe\x00\x01aes" + bytes(29) + b"xts-plain64" + bytes(21) + b"sha256" + bytes(600)


# The label of a physical volume of LVM, in the second sector: its place, the checksum of the rest, and its type.
_LABEL = bytes.fromhex("20000000") + b"LVM2 001" + b"0" * 32 + bytes(448)
_CHECKSUM = zlib.crc32(_LABEL, 0xF597A6CF ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
LVM = bytes(512) + b"LABELONE" + struct.pack("<QI", 1, _CHECKSUM) + _LABEL
SAY_SO = ('encrypted: "true"', "encryptionKMSID", "volumeAttributes", "volumeHandle")


@pytest.mark.parametrize("fs_type", ["ext4", ""])
@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (PARTITIONS, ("partition table (dos)", "volumeMode: Block", *BY_HAND)),
        (LUKS, ("crypto_LUKS", *SAY_SO)),
        (LVM, ("LVM2_member", *BY_HAND)),
    ],
)
def test_partitions_and_other_layers_are_left_alone_and_named_with_what_to_do(
    node: Node, image_of: ImageOf, header: bytes, expected: tuple[str, ...], fs_type: str
) -> None:
    kit = node.make_volume(mounted(fs_type=fs_type))
    put(image_of, kit, 0, header)
    with image_of(kit, read_only=True) as image:
        before = content(image)
    words = refusal_of(kit)
    for word in ("left as it is", *expected):
        assert word in words
    assert "Ask for" not in words
    with image_of(kit, read_only=True) as image:
        assert content(image) == before


def test_a_volume_of_another_driver_has_no_mark_and_is_used_as_it_is(node: Node) -> None:
    kit = node.make_volume(mounted(fs_type="ext4"))
    make_on_device(node, kit, "mkfs.ext4", "-q", "-L", "theirs")
    kit.stage()
    label = run(["blkid", "--probe", "--match-tag", "LABEL", "--output", "value", kit.loop()], timeout=20).stdout
    assert label.strip() == "theirs"
    assert kit.metadata()[MARK_KEY] == "formatted ext4"


def test_a_volume_whose_mkfs_was_cut_off_is_formatted_again(node: Node, image_of: ImageOf) -> None:
    kit = node.make_volume(mounted(fs_type="ext4"))
    put(image_of, kit, 8 * MIB, b"half an inode table")
    node.rig.pool.rbd("image-meta", "set", kit.image, MARK_KEY, "formatting ext4")
    kit.stage()
    assert kit.metadata()[MARK_KEY] == "formatted ext4"
    assert kit.publish().is_dir()


def test_an_xfs_whose_mkfs_was_cut_off_is_made_again_only_where_the_mark_says_so(node: Node, refused: Refused) -> None:
    kit = node.make_volume(mounted(fs_type="xfs"))
    make_on_device(node, kit, "mkfs.xfs", "-q")
    cut_off = ["xfs_db", "-x", "-c", "sb 0", "-c", "write inprogress 1", str(node.directory / "foreign")]
    run(cut_off, timeout=60)
    node.rig.pool.rbd("rm", "--no-progress", kit.image)
    node.rig.pool.cluster.rbd(
        "import", "--no-progress", str(node.directory / "foreign"), f"{node.rig.pool.name}/{kit.image}"
    )
    with refused("INTERNAL", "mount"):
        kit.stage()
    node.rig.pool.rbd("image-meta", "set", kit.image, MARK_KEY, "formatting xfs")
    kit.stage()
    assert kit.metadata()[MARK_KEY] == "formatted xfs"
    assert kit.publish().is_dir()


def test_what_was_handed_out_as_a_block_device_is_never_formatted_afterwards(
    node: Node, refused: Refused, unchanged: Unchanged
) -> None:
    raw = node.make_volume(block())
    node.rig.pool.rbd("image-meta", "set", raw.image, MARK_KEY, "formatting ext4")
    raw.stage()
    Path(raw.loop()).write_bytes(b"data without a signature" * 1000)
    raw.unstage()
    is_unchanged = unchanged(raw)
    with refused("FAILED_PRECONDITION", "'raw'"):
        raw.stage(volume_capability=mounted(fs_type="ext4"))
    assert is_unchanged()


def test_a_filesystem_is_used_although_the_mark_says_that_mkfs_was_cut_off(node: Node) -> None:
    kit = node.make_volume(mounted(fs_type="xfs"))
    kit.stage()
    (kit.publish() / "file").write_text("written by a driver that knows no marks")
    kit.unpublish()
    kit.unstage()
    node.rig.pool.rbd("image-meta", "set", kit.image, MARK_KEY, "formatting xfs")
    kit.stage()
    assert (kit.publish() / "file").read_text() == "written by a driver that knows no marks"


@pytest.mark.parametrize("mode", [MODE.MULTI_NODE_READER_ONLY, MODE.SINGLE_NODE_READER_ONLY])
def test_a_blank_volume_is_not_formatted_for_a_reader(
    node: Node, refused: Refused, unchanged: Unchanged, mode: csi_pb2.VolumeCapability.AccessMode.Mode.ValueType
) -> None:
    kit = node.make_volume(mounted(mode))
    is_unchanged = unchanged(kit)
    with refused("FAILED_PRECONDITION", "read-only"):
        kit.stage()
    assert is_unchanged()


def test_a_blank_volume_is_not_formatted_when_it_is_to_be_mounted_read_only(node: Node, refused: Refused) -> None:
    capability = mounted(fs_type="ext4")
    capability.mount.mount_flags.append("ro")
    with refused("FAILED_PRECONDITION", "read-only"):
        node.make_volume(capability).stage()


def static(node: Node, kit: Kit) -> Kit:
    """Return the volume as an administrator would write it into a PersistentVolume."""
    context = {"staticVolume": "true", "clusterID": "dev", "pool": node.rig.pool.name, "mounter": "qemu"}
    return node.kit_for(csi_pb2.Volume(volume_id=kit.image, volume_context={**context, "imageName": kit.image}),
                        kit.capability)  # fmt: skip


def test_a_static_volume_is_never_formatted(node: Node, refused: Refused, unchanged: Unchanged) -> None:
    kit = node.make_volume(mounted(fs_type="ext4"))
    is_unchanged = unchanged(kit)
    with refused("FAILED_PRECONDITION", "staticVolume"):
        static(node, kit).stage()
    assert is_unchanged()


def test_a_static_volume_with_a_filesystem_lives_as_any_other(node: Node) -> None:
    kit = node.make_volume(mounted(fs_type="ext4"))
    make_on_device(node, kit, "mkfs.ext4", "-q")
    one = static(node, kit)
    one.stage()
    (one.publish() / "file").write_text("data")
    one.unpublish()
    one.unstage()
    assert MARK_KEY not in kit.metadata()


@pytest.mark.parametrize("exit_code", [1, 3, 4, 8, 127])
def test_a_probe_that_fails_never_formats(
    node: Node, refused: Refused, unchanged: Unchanged, fake_program: FakeProgram, exit_code: int
) -> None:
    kit = node.make_volume(mounted(fs_type="ext4"))
    is_unchanged = unchanged(kit)
    fake_program("blkid", f"exit {exit_code}")
    with refused("FAILED_PRECONDITION", "blkid", "what serves the device", "wipefs --no-act", "tried again"):
        kit.stage()
    assert is_unchanged()
    assert MARK_KEY not in kit.metadata()


def test_a_probe_that_finds_nothing_wrongly_does_not_format_what_has_data(
    node: Node, refused: Refused, image_of: ImageOf, unchanged: Unchanged, fake_program: FakeProgram
) -> None:
    kit = node.make_volume(mounted(fs_type="ext4"))
    put(image_of, kit, 0, b"XFSB")
    is_unchanged = unchanged(kit)
    fake_program("blkid", "exit 2")
    with refused("FAILED_PRECONDITION", "data"):
        kit.stage()
    assert is_unchanged()


def test_a_failing_mkfs_leaves_nothing_on_the_node_and_the_next_one_succeeds(
    node: Node, refused: Refused, fake_program: FakeProgram
) -> None:
    kit = node.make_volume(mounted(fs_type="ext4"))
    fake_program("mkfs.ext4", "echo no such luck >&2; exit 1")
    with refused("INTERNAL", "no such luck"):
        kit.stage()
    assert list(kit.staging.iterdir()) == []
    node.machine.assert_clean()
    assert kit.metadata()[MARK_KEY] == "formatting ext4"
    fake_program("mkfs.ext4", 'exec /sbin/mkfs.ext4 "$@"')
    kit.stage()


def test_a_client_that_gives_up_and_asks_again_never_gets_two_mkfs(
    node: Node, directory: Path, fake_program: FakeProgram
) -> None:
    kit = node.make_volume(mounted(fs_type="ext4"))
    started, go_on, runs = directory / "started", directory / "go-on", directory / "runs"
    for pipe in (started, go_on):
        os.mkfifo(pipe)
    script = f'echo run >> {runs}; echo begun > {started}; read line < {go_on}; exec /sbin/mkfs.ext4 "$@"'
    fake_program("mkfs.ext4", script)
    ends: list[grpc.StatusCode] = []

    def give_up() -> None:
        try:
            kit.stage(timeout=3)
        except grpc.RpcError as error:
            ends.append(error.code())

    impatient = threading.Thread(target=give_up)
    impatient.start()
    assert started.read_text() == "begun\n"
    impatient.join(30)
    assert ends == [grpc.StatusCode.DEADLINE_EXCEEDED]
    with pytest.raises(grpc.RpcError) as caught:
        kit.stage()
    assert caught.value.code() is grpc.StatusCode.ABORTED
    assert "NodeStageVolume" in str(caught.value.details())
    go_on.write_text("on\n")
    _stage_when_free(kit)
    assert runs.read_text() == "run\n"
    assert kit.publish().is_dir()


def _stage_when_free(kit: Kit) -> None:
    for _ in range(200):
        try:
            kit.stage()
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.ABORTED:
                raise
            threading.Event().wait(0.1)
        else:
            return
    raise AssertionError("the first call never ended")
