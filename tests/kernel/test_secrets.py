"""No key and no passphrase leaves the memory of those who need it, with the kernel's client, nbd and dm-crypt."""

from pathlib import Path

import pytest

from csi_host_rbd.testing.machine import kill_rbd_nbd
from csi_host_rbd.testing.node_kit import MIB, Node
from csi_host_rbd.testing.rig import mounted
from csi_host_rbd.testing.secret_watch import live_unseen

pytestmark = [pytest.mark.ceph, pytest.mark.root]

PASSPHRASE = "a passphrase that is nowhere else"


@pytest.mark.parametrize("mounter", ["rbd", pytest.param("rbd-nbd", marks=pytest.mark.thorough)])
def test_no_secret_is_in_a_log_a_command_line_an_environment_or_a_file(
    node: Node, directory: Path, mounter: str
) -> None:
    node.rig.secrets["encryptionPassphrase"] = PASSPHRASE
    kit = node.make_volume(mounted(fs_type="ext4"), size_bytes=96 * MIB, mounter=mounter, encrypted="true")
    seen = live_unseen(
        node,
        kit,
        directory,
        secrets=[PASSPHRASE],
        grown_bytes=128 * MIB,
        disturb=kill_rbd_nbd if mounter == "rbd-nbd" else lambda: None,
    )
    assert {"cryptsetup", "rbd-nbd" if mounter == "rbd-nbd" else "rbd"} <= seen.programs
    assert "image-meta.json" in seen.files
    assert "NodeStageVolume" in seen.log
