"""Encrypted volumes with the kernel's own dm-crypt, beside their whole life (test_life.py)."""

import os
from pathlib import Path

import grpc
import pytest

from csi_host.process import run
from csi_host.proto import csi_pb2
from csi_host_rbd.testing.node_kit import Kit, Node
from csi_host_rbd.testing.rig import block, mounted
from csi_host_rbd.testing.rotating import rotate

pytestmark = [pytest.mark.ceph, pytest.mark.root]

MIB = 1024**2
HEADER = 16 * MIB
WRAPPED = "rbd.csi.ceph.com/dek"


def make(
    node: Node, capability: csi_pb2.VolumeCapability | None = None, *, mounter: str = "rbd", **parameters: str
) -> Kit:
    wanted = capability or mounted(fs_type="ext4")
    return node.make_volume(wanted, size_bytes=96 * MIB, encrypted="true", mounter=mounter, **parameters)


def mappings() -> list[Path]:
    return sorted(Path("/sys/block").glob("dm-*"))


def below(mapping: Path) -> str:
    (device,) = (mapping / "slaves").iterdir()
    return device.name


def lose_mount(kit: Kit) -> None:
    """What a crash after the mapping was made leaves."""
    run(["umount", str(kit.staged)], timeout=60)


@pytest.mark.thorough
@pytest.mark.parametrize(("first", "then"), [("rbd", "qemu"), ("qemu", "rbd"), ("rbd-nbd", "rbd")])
def test_either_mounter_opens_what_the_other_made(node: Node, first: str, then: str) -> None:
    kit = make(node, mounter=first)
    kit.stage(timeout=300)
    assert bool(mappings()) is (first != "qemu")
    (kit.staged / "file").write_text(f"written by {first}")
    kit.unstage()
    kit.stage(timeout=300, volume_context=dict(kit.volume.volume_context) | {"mounter": then})
    assert bool(mappings()) is (then != "qemu")
    assert (kit.staged / "file").read_text() == f"written by {first}"


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


@pytest.mark.thorough
def test_a_wrong_passphrase_leaves_neither_mapping_nor_device(node: Node) -> None:
    kit = make(node)
    kit.stage(timeout=300)
    kit.unstage()
    with pytest.raises(grpc.RpcError) as caught:
        kit.stage(timeout=300, secrets=node.rig.secrets | {"encryptionPassphrase": "another"})
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "passphrase" in str(caught.value.details())
    assert mappings() == []
    assert list(Path("/sys/bus/rbd/devices").iterdir()) == []


@pytest.mark.thorough
def test_a_device_that_holds_data_and_no_filesystem_is_not_formatted(node: Node) -> None:
    kit = make(node, block())
    kit.stage(timeout=300)
    data = os.urandom(MIB)
    with kit.staged.open("r+b", buffering=0) as file:
        file.seek(20 * MIB)
        file.write(data)
        os.fsync(file.fileno())
    kit.unstage()
    with pytest.raises(grpc.RpcError) as caught:
        kit.stage(timeout=300, volume_capability=mounted(fs_type="ext4"))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "behind the LUKS header" in str(caught.value.details())
    kit.stage(timeout=300)
    with kit.staged.open("rb", buffering=0) as file:
        file.seek(20 * MIB)
        assert file.read(MIB) == data


@pytest.mark.thorough
def test_a_reader_gets_a_mapping_that_is_read_only(node: Node) -> None:
    kit = make(node, block())
    kit.stage(timeout=300)
    kit.unstage()
    reader = node.kit_for(kit.volume, block(csi_pb2.VolumeCapability.AccessMode.SINGLE_NODE_READER_ONLY))
    reader.stage(timeout=300)
    (mapping,) = mappings()
    assert (mapping / "ro").read_text().strip() == "1"


@pytest.mark.thorough
def test_no_key_of_dm_crypt_is_in_the_kernel_s_keyring_and_it_grows_without_its_passphrase(node: Node) -> None:
    kit = make(node, block())
    kit.stage(timeout=300)
    (mapping,) = mappings()
    name = (mapping / "dm/name").read_text().strip()
    assert name == f"luks-rbd-{kit.volume.volume_id}"
    # With the keyring the key's place in the table would be ":<size>:logon:<description>".
    assert ":logon:" not in run(["dmsetup", "table", "--showkeys", name], timeout=30).stdout
    kit.grow_image(128 * MIB)
    assert kit.expand(128 * MIB) == 128 * MIB
    assert int((mapping / "size").read_text()) * 512 == 128 * MIB - HEADER


@pytest.mark.thorough
@pytest.mark.parametrize("mounter", ["rbd", "rbd-nbd"])
def test_the_passphrase_of_a_volume_in_use_is_changed(node: Node, mounter: str) -> None:
    (node.directory / "kms.json").write_text('{"of-each": {"encryptionKMSType": "metadata"}}')
    kit = make(node, mounter=mounter, encryptionKMSID="of-each")
    kit.stage(timeout=300)
    (kit.staged / "file").write_text("data")
    wrapped = kit.metadata()[WRAPPED]
    done = rotate(kit, node.directory)
    assert (done.exit_code, done.stderr) == (0, "")
    assert kit.metadata()[WRAPPED] != wrapped
    (kit.staged / "more").write_text("more data")
    kit.unstage()
    kit.stage(timeout=300)
    assert (kit.staged / "file").read_text() == "data"
    assert (kit.staged / "more").read_text() == "more data"
