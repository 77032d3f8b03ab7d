"""The passphrase of a staged volume is changed by the command line, beside the csi-host that serves the volume."""

from pathlib import Path

import pytest
import rados

from csi_host_rbd.devcluster import DevCluster
from csi_host_rbd.testing.node_kit import Kit, Node
from csi_host_rbd.testing.rotating import rotate
from csi_host_rbd.testing.vault import VaultServer

pytestmark = [pytest.mark.ceph, pytest.mark.root]

MIB = 1024**2
WRAPPED = "rbd.csi.ceph.com/dek"


@pytest.fixture
def node(encrypting_node: Node) -> Node:
    return encrypting_node


def stored(kit: Kit, vault: VaultServer) -> object:
    """What the KMS, or the image in its stead, keeps."""
    secrets = {path: [str(version) for version in secret.versions] for path, secret in vault.secrets.items()}
    return kit.metadata().get(WRAPPED), secrets


def test_a_volume_in_use_gets_another_passphrase_unless_ceph_csi_is_at_it(
    node: Node, vault: VaultServer, directory: Path, ceph: DevCluster
) -> None:
    kit = node.make_volume(size_bytes=64 * MIB, encrypted="true", encryptionKMSID="vault-1")
    kit.stage()
    file = kit.publish() / "file"
    file.write_text("before")
    before, handle = stored(kit, vault), kit.volume.volume_id
    name, cookie = f"{handle}-mutexlock", f"{handle}-enc-key-rotate"
    with rados.Rados(conffile=str(ceph.ceph_conf)) as client, client.open_ioctx(node.rig.pool.name) as ioctx:
        ioctx.lock_exclusive(handle, name, cookie, "", 180, 0)
        refusal = rotate(kit, directory)
        assert refusal.exit_code == 1
        assert "somebody else" in refusal.stderr
        assert stored(kit, vault) == before
        ioctx.unlock(handle, name, cookie)
        done = rotate(kit, directory)
        assert (done.exit_code, done.stderr) == (0, "")
        # ceph-csi leaves the object that the lock is on.
        with pytest.raises(rados.ObjectNotFound):
            ioctx.stat(handle)
    assert stored(kit, vault) != before
    assert file.read_text() == "before"
    file.write_text("after")
    assert len(node.machine.daemons()) == 1
    kit.unpublish()
    kit.unstage()
    node.machine.assert_clean()
    kit.stage()
    assert (kit.publish() / "file").read_text() == "after"


def test_what_cannot_be_changed_is_said(node: Node, directory: Path) -> None:
    kit = node.make_volume(size_bytes=64 * MIB, encrypted="true")
    refusal = rotate(kit, directory)
    assert refusal.exit_code == 1
    assert "is not staged on this node" in refusal.stderr
    kit.stage()
    refusal = rotate(kit, directory)
    assert refusal.exit_code == 1
    assert "one passphrase" in refusal.stderr
    plain = node.make_volume(size_bytes=64 * MIB)
    plain.stage()
    refusal = rotate(plain, directory)
    assert refusal.exit_code == 1
    assert "is not encrypted" in refusal.stderr
