"""A volume whose mounter this node does not have: with tryOtherMounters it is staged by one that it has.

This machine has neither of the kernel's modules, rbd and nbd, so that leaves qemu; tests/kernel has them.
"""

from typing import Any

import pytest

from csi_host_rbd.node.stash import read_stash
from csi_host_rbd.testing.node_kit import Kit, Node, Refused
from csi_host_rbd.testing.rig import GIB, mounted

pytestmark = [pytest.mark.ceph, pytest.mark.root]


def mounter_of(kit: Kit) -> str:
    stash = read_stash(kit.staging)
    assert stash is not None
    return stash.mounter


@pytest.mark.parametrize("mounter", ["rbd", "rbd-nbd"])
def test_a_volume_is_staged_by_a_mounter_that_this_node_has(node: Node, mounter: str) -> None:
    kit = node.make_volume(mounted(), mounter=mounter, tryOtherMounters="true")
    kit.stage()
    assert mounter_of(kit) == "qemu"
    (kit.publish() / "file").write_text("data")
    kit.stage()
    kit.grow_image(2 * GIB)
    assert kit.expand(2 * GIB) == 2 * GIB
    kit.unpublish()
    kit.unstage()
    node.machine.assert_clean()
    kit.stage()
    assert (kit.publish() / "file").read_text() == "data"


@pytest.mark.parametrize("wishes", [{"tryOtherMounters": "false"}, {}])
def test_without_it_the_node_says_what_it_lacks(node: Node, refused: Refused, wishes: dict[str, Any]) -> None:
    kit = node.make_volume(mounter="rbd", **wishes)
    with refused("FAILED_PRECONDITION", "module rbd", "mounter: qemu"):
        kit.stage()
    assert list(kit.staging.iterdir()) == []
    node.machine.assert_clean()


def test_an_encrypted_volume_is_opened_by_the_mounter_that_was_found(encrypting_node: Node) -> None:
    kit = encrypting_node.make_volume(mounted(fs_type="ext4"), mounter="rbd", tryOtherMounters="true", encrypted="true")
    kit.stage()
    assert mounter_of(kit) == "qemu"
    (kit.publish() / "file").write_text("data")
