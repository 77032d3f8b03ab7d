"""Encrypted volumes on a node, by the qemu mounter's own LUKS: tests/kernel has dm-crypt's."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from csi_host.kms import Passphrase
from csi_host.process import run
from csi_host.proto import csi_pb2
from csi_host_rbd.encryption.luks import Luks
from csi_host_rbd.node.marks import MARK_KEY
from csi_host_rbd.testing.fast_luks import fast_luks
from csi_host_rbd.testing.node_kit import ImageOf, Kit, Node, Refused
from csi_host_rbd.testing.rig import block, mounted

pytestmark = [pytest.mark.ceph, pytest.mark.root]

MIB = 1024**2
HEADER = 16 * MIB
STATE = "rbd.csi.ceph.com/encrypted"
LUKS_MARK = "csi-host/luks"


@pytest.fixture
def node(encrypting_node: Node) -> Node:
    return encrypting_node


def checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_image(kit: Kit, image_of: ImageOf) -> bytes:
    with image_of(kit, read_only=True) as image:
        return bytes(image.read(0, image.size()))


@pytest.mark.parametrize(("kms_id", "fs_type"), [("", "ext4"), ("wrapping", "xfs"), ("vault-1", "ext4")])
def test_a_filesystem_lives_through_everything(node: Node, image_of: ImageOf, kms_id: str, fs_type: str) -> None:
    kit = node.make_volume(
        mounted(fs_type=fs_type),
        size_bytes=400 * MIB,
        encrypted="true",
        **({"encryptionKMSID": kms_id} if kms_id else {}),
    )
    assert kit.metadata()[STATE] == "encryptionPrepared"
    kit.stage()
    metadata = kit.metadata()
    assert (metadata[STATE], metadata[MARK_KEY]) == ("encrypted", f"formatted {fs_type}")
    assert LUKS_MARK not in metadata
    assert json.loads((kit.staging / "image-meta.json").read_text())["encrypted"] is True
    file = kit.publish() / "file"
    secret_text = os.urandom(3 * MIB)
    file.write_bytes(secret_text)
    before = checksum(file)
    # The image has the size that was asked for, the device less by the header.
    assert kit.expand(400 * MIB) == 400 * MIB
    kit.grow_image(600 * MIB)
    if fs_type == "xfs":
        assert kit.expand(600 * MIB) == 600 * MIB
    kit.stage()
    assert checksum(file) == before
    kit.unpublish()
    kit.unstage()
    node.machine.assert_clean()
    with image_of(kit, read_only=True) as image:
        assert image.size() == 600 * MIB
        assert image.read(0, 6) == b"LUKS\xba\xbe"
    kit.stage()
    assert checksum(kit.publish() / "file") == before
    assert os.statvfs(kit.target()).f_blocks * os.statvfs(kit.target()).f_frsize > 500 * MIB
    kit.unpublish()
    kit.unstage()
    content = read_image(kit, image_of)
    assert secret_text[:4096] not in content
    node.rig.delete(kit.volume.volume_id)


def test_a_block_volume_lives_through_everything(node: Node, image_of: ImageOf) -> None:
    kit = node.make_volume(block(), size_bytes=64 * MIB, encrypted="true", encryptionKMSID="wrapping")
    kit.stage()
    device = kit.publish()
    data = os.urandom(MIB)
    with device.open("r+b", buffering=0) as file:
        assert file.seek(0, os.SEEK_END) == 64 * MIB - HEADER
        file.seek(7 * MIB)
        file.write(data)
        os.fsync(file.fileno())
    kit.grow_image(96 * MIB)
    assert kit.expand(96 * MIB) == 96 * MIB
    assert kit.expand(96 * MIB) == 96 * MIB
    with device.open("r+b", buffering=0) as file:
        assert file.seek(0, os.SEEK_END) == 96 * MIB - HEADER
        file.seek(80 * MIB - MIB)
        file.write(data)
        os.fsync(file.fileno())
    kit.unpublish()
    kit.unstage()
    node.machine.assert_clean()
    kit.stage()
    with kit.publish().open("rb", buffering=0) as file:
        for offset in (7 * MIB, 80 * MIB - MIB):
            file.seek(offset)
            assert file.read(MIB) == data
    kit.unpublish()
    kit.unstage()
    with image_of(kit, read_only=True) as image:
        assert image.size() == 96 * MIB
    node.rig.delete(kit.volume.volume_id)


def test_clones_and_snapshots_are_opened_on_the_same_node(node: Node) -> None:
    parameters = {"encrypted": "true", "encryptionKMSID": "wrapping"}
    kit = node.make_volume(mounted(fs_type="ext4"), size_bytes=200 * MIB, **parameters)
    kit.stage()
    (kit.publish() / "file").write_text("data of the source")
    kit.unpublish()
    kit.unstage()
    snapshot = node.rig.snapshot(kit.volume.volume_id, f"snap-{kit.image}")
    size = csi_pb2.CapacityRange(required_bytes=300 * MIB)
    wanted = {"parameters": node.rig.parameters(**parameters), "capacity_range": size}
    restored = node.rig.restore(snapshot.snapshot_id, f"restored-{kit.image}", **wanted)
    cloned = node.rig.clone(kit.volume.volume_id, f"cloned-{kit.image}", **wanted)
    copies = [node.kit_for(volume, mounted(fs_type="ext4")) for volume in (restored, cloned)]
    kit.stage()
    for number, copy in enumerate(copies):
        copy.stage()
        place = copy.publish(f"pod-{number}")
        assert (place / "file").read_text() == "data of the source"
        assert os.statvfs(place).f_blocks * os.statvfs(place).f_frsize > 220 * MIB
        (place / "file").write_text("data of the copy")
        copy.unpublish(f"pod-{number}")
        copy.unstage()
    assert (kit.publish() / "file").read_text() == "data of the source"


def test_a_wrong_passphrase_is_said_and_nothing_is_touched(node: Node, refused: Refused, image_of: ImageOf) -> None:
    kit = node.make_volume(size_bytes=64 * MIB, encrypted="true")
    kit.stage()
    kit.unstage()
    before, metadata = read_image(kit, image_of), kit.metadata()
    with refused("FAILED_PRECONDITION", "passphrase"):
        kit.stage(secrets=node.rig.secrets | {"encryptionPassphrase": "another"})
    with refused("INVALID_ARGUMENT", "encryptionPassphrase"):
        kit.stage(secrets={name: text for name, text in node.rig.secrets.items() if name != "encryptionPassphrase"})
    node.machine.assert_clean()
    assert (read_image(kit, image_of), kit.metadata()) == (before, metadata)
    kit.stage()


def test_a_damaged_header_is_said_and_nothing_is_touched(node: Node, refused: Refused, image_of: ImageOf) -> None:
    kit = node.make_volume(size_bytes=64 * MIB, encrypted="true")
    kit.stage()
    kit.unstage()
    with image_of(kit) as image:
        whole = bytes(image.read(0, 64 * 1024))
        image.write(bytes(64 * 1024), 0)
    before = read_image(kit, image_of)
    with refused("FAILED_PRECONDITION", "no LUKS header", "luksHeaderRestore"):
        kit.stage()
    assert read_image(kit, image_of) == before
    assert kit.metadata()[STATE] == "encrypted"
    with image_of(kit) as image:
        image.write(whole, 0)
    kit.stage()


@pytest.mark.parametrize("content", ["data", "ext4", "far away"])
def test_what_is_not_blank_gets_no_header(
    node: Node, refused: Refused, image_of: ImageOf, tmp_path: Path, content: str
) -> None:
    kit = node.make_volume(size_bytes=64 * MIB, encrypted="true")
    text, offset = os.urandom(4096), 50 * MIB + 4096 if content == "far away" else 0
    if content == "ext4":
        file = tmp_path / "ext4"
        file.write_bytes(bytes(MIB))
        run(["mkfs.ext4", "-q", "-F", str(file)], timeout=30)
        text = file.read_bytes()
    with image_of(kit) as image:
        image.write(text, offset)
    before, metadata = read_image(kit, image_of), kit.metadata()
    with refused("FAILED_PRECONDITION", "not formatted"):
        kit.stage()
    assert (read_image(kit, image_of), kit.metadata()) == (before, metadata)
    node.machine.assert_clean()


def cut_off_noise(kit: Kit, image_of: ImageOf) -> None:
    """What luksFormat leaves when it is killed while it fills the header's area."""
    with image_of(kit) as image:
        image.write(os.urandom(MIB), 64 * 1024)


def cut_off_without_passphrase(kit: Kit, image_of: ImageOf) -> None:
    """What it leaves when it is killed after the header and before the first passphrase."""
    file = kit.directory / "header"
    file.write_bytes(bytes(20 * MIB))
    Luks(fast_luks(run)).format(str(file), Passphrase("x"))
    run(["cryptsetup", "-q", "luksErase", str(file)], timeout=30)
    with image_of(kit) as image:
        image.write(file.read_bytes()[:HEADER], 0)


@pytest.mark.parametrize("cut_off", [cut_off_noise, cut_off_without_passphrase])
def test_a_header_that_was_cut_off_is_written_anew_only_by_our_own_mark(
    node: Node, refused: Refused, image_of: ImageOf, cut_off: Callable[[Kit, ImageOf], None]
) -> None:
    kit = node.make_volume(size_bytes=64 * MIB, encrypted="true")
    cut_off(kit, image_of)
    before = read_image(kit, image_of)
    with refused("FAILED_PRECONDITION", "not formatted"):
        kit.stage()
    assert read_image(kit, image_of) == before
    node.rig.pool.rbd("image-meta", "set", kit.image, LUKS_MARK, "formatting")
    with image_of(kit) as image:
        image.write(b"somebody's", 40 * MIB)
    with refused("FAILED_PRECONDITION", "behind the LUKS header"):
        kit.stage()
    with image_of(kit) as image:
        image.discard(32 * MIB, 16 * MIB)
    kit.stage()
    (kit.publish() / "file").write_text("data")


def test_a_header_whose_state_was_not_noted_is_kept(node: Node, image_of: ImageOf) -> None:
    kit = node.make_volume(size_bytes=64 * MIB, encrypted="true", encryptionKMSID="wrapping")
    kit.stage()
    (kit.publish() / "file").write_text("data")
    kit.unpublish()
    kit.unstage()
    node.rig.pool.rbd("image-meta", "set", kit.image, STATE, "requiresEncryption")
    node.rig.pool.rbd("image-meta", "set", kit.image, LUKS_MARK, "formatting")
    with image_of(kit, read_only=True) as image:
        header = bytes(image.read(0, HEADER))
    kit.stage()
    assert (kit.publish() / "file").read_text() == "data"
    assert kit.metadata()[STATE] == "encrypted"
    assert LUKS_MARK not in kit.metadata()
    with image_of(kit, read_only=True) as image:
        assert bytes(image.read(0, HEADER)) == header


def test_a_filesystem_is_made_only_where_nothing_was_written_behind_the_header(
    node: Node, refused: Refused, image_of: ImageOf
) -> None:
    kit = node.make_volume(block(), size_bytes=64 * MIB, encrypted="true")
    kit.stage()
    with kit.publish().open("r+b", buffering=0) as file:
        file.seek(20 * MIB)
        file.write(os.urandom(MIB))
    kit.unpublish()
    kit.unstage()
    before = read_image(kit, image_of)
    with refused("FAILED_PRECONDITION", "behind the LUKS header"):
        kit.stage(volume_capability=mounted(fs_type="ext4"))
    assert read_image(kit, image_of) == before


def test_an_image_that_is_opened_elsewhere_gets_no_header(node: Node, refused: Refused, image_of: ImageOf) -> None:
    kit = node.make_volume(block(csi_pb2.VolumeCapability.AccessMode.MULTI_NODE_MULTI_WRITER), encrypted="true")
    with image_of(kit) as image:
        image.metadata_set("not", "closed")
        with refused("FAILED_PRECONDITION", "more than this node"):
            kit.stage()
    assert kit.metadata()[STATE] == "encryptionPrepared"
    node.machine.assert_clean()
    kit.stage()


def test_context_and_journal_must_agree(node: Node, refused: Refused) -> None:
    plain, encrypted = node.make_volume(), node.make_volume(encrypted="true", encryptionKMSID="wrapping")
    context = dict(plain.volume.volume_context)
    with refused("FAILED_PRECONDITION", "KMS 'default'", "not encrypted"):
        plain.stage(volume_context=context | {"encrypted": "true"})
    context = dict(encrypted.volume.volume_context)
    with refused("FAILED_PRECONDITION", "not encrypted", "KMS 'wrapping'"):
        encrypted.stage(volume_context=context | {"encrypted": "false"})
    with refused("FAILED_PRECONDITION", "KMS 'vault-1'", "KMS 'wrapping'"):
        encrypted.stage(volume_context=context | {"encryptionKMSID": "vault-1"})
    node.machine.assert_clean()


def test_a_header_on_a_volume_that_is_not_encrypted_is_left_alone(
    node: Node, refused: Refused, image_of: ImageOf
) -> None:
    kit = node.make_volume(size_bytes=64 * MIB)
    cut_off_without_passphrase(kit, image_of)
    before = read_image(kit, image_of)
    with refused("FAILED_PRECONDITION", "crypto_LUKS"):
        kit.stage()
    assert read_image(kit, image_of) == before


def test_an_image_without_a_state_is_no_encrypted_one(node: Node, refused: Refused) -> None:
    kit = node.make_volume(size_bytes=64 * MIB, encrypted="true")
    node.rig.pool.rbd("image-meta", "remove", kit.image, STATE)
    with refused("FAILED_PRECONDITION", "no state of encryption"):
        kit.stage()
    node.machine.assert_clean()


def test_no_header_is_written_for_a_reader(node: Node, refused: Refused) -> None:
    kit = node.make_volume(
        block(csi_pb2.VolumeCapability.AccessMode.SINGLE_NODE_READER_ONLY), size_bytes=64 * MIB, encrypted="true"
    )
    with refused("FAILED_PRECONDITION", "read-only"):
        kit.stage()
    writer = node.kit_for(kit.volume, block())
    writer.stage()
    with writer.publish().open("r+b", buffering=0) as file:
        file.write(b"x" * 4096)
    writer.unpublish()
    writer.unstage()
    kit.stage()
    with kit.publish().open("rb", buffering=0) as file:
        assert file.read(4096) == b"x" * 4096


def test_a_static_volume_is_opened_and_never_given_a_header(node: Node, refused: Refused) -> None:
    kit = node.make_volume(size_bytes=64 * MIB, encrypted="true")
    context = {
        "staticVolume": "true",
        "clusterID": node.rig.pool.cluster.cluster_id,
        "pool": node.rig.pool.name,
        "mounter": "qemu",
        "encrypted": "true",
    }
    static = node.kit_for(
        csi_pb2.Volume(volume_id=kit.image, volume_context=context | {"imageName": kit.image}), kit.capability
    )
    with refused("FAILED_PRECONDITION", "administrator"):
        static.stage()
    kit.stage()
    (kit.publish() / "file").write_text("data")
    kit.unpublish()
    kit.unstage()
    static.stage()
    assert (static.publish() / "file").read_text() == "data"


def test_a_dead_daemon_below_an_encrypted_volume_is_replaced(node: Node) -> None:
    # For many nodes, as any other would wait for the dead daemon's watch to run out.
    many = csi_pb2.VolumeCapability.AccessMode.MULTI_NODE_MULTI_WRITER
    kit = node.make_volume(block(many), size_bytes=64 * MIB, encrypted="true")
    kit.stage()
    with kit.publish().open("r+b", buffering=0) as file:
        file.write(b"x" * 4096)
        os.fsync(file.fileno())
    kit.unpublish()
    node.machine.kill_daemon()
    kit.stage()
    with kit.publish().open("rb", buffering=0) as file:
        assert file.read(4096) == b"x" * 4096


def test_no_secret_is_in_a_file(node: Node) -> None:
    kit = node.make_volume(size_bytes=64 * MIB, encrypted="true")
    kit.stage()
    kit.publish()
    texts = {
        path: path.read_bytes()
        for path in node.directory.rglob("*")
        if path.is_file() and not path.is_mount() and kit.staged not in path.parents
    }
    assert any(path.name == "image-meta.json" for path in texts)
    assert [path for path, text in texts.items() if node.rig.secrets["encryptionPassphrase"].encode() in text] == []
