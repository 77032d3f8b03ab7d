"""Mirrored images on a node: a mirror's copy is not touched, and the mirror daemons of a primary are no users of it."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from csi_host.node.stats import volume_stats
from csi_host.process import run
from csi_host.proto import csi_pb2
from csi_host_rbd.testing.fast_luks import fast_luks
from csi_host_rbd.testing.node_kit import Kit, Node, Refused
from csi_host_rbd.testing.pools import PoolView
from csi_host_rbd.testing.rig import block, mounted, rbd_rig

pytestmark = [pytest.mark.ceph, pytest.mark.root]

MIB = 1024**2
MODE = csi_pb2.VolumeCapability.AccessMode


@pytest.fixture
def node(whole_pool: PoolView, directory: Path) -> Iterator[Node]:
    """A node with a pool of its own, as mirroring is a pool's."""
    with rbd_rig(whole_pool, directory, volume_stats=volume_stats, run=fast_luks(run)) as rig:
        rig.secrets["encryptionPassphrase"] = "the secret of the class"
        one = Node(rig=rig, directory=directory)
        yield one
        one.clear()


def expect_daemons(node: Node, count: int) -> None:
    """Have the cluster configured with so many mirror daemons."""
    file = node.directory / "config.json"
    (cluster,) = json.loads(file.read_text(encoding="utf-8"))
    cluster["rbd"]["mirrorDaemonCount"] = count
    file.write_text(json.dumps([cluster]), encoding="utf-8")


@contextmanager
def watched(kit: Kit, times: int) -> Iterator[None]:
    """Have so many other clients watch the image, as mirror daemons do."""
    with ExitStack() as stack:
        for _ in range(times):
            stack.enter_context(kit.rig.pool.opened(kit.image))
        yield


def test_the_mirror_daemons_of_a_primary_are_no_users_and_one_more_is(node: Node, refused: Refused) -> None:
    kit = node.make_volume(mounted(fs_type="ext4"))
    node.rig.pool.enable_mirroring(kit.image)
    with watched(kit, 1):
        kit.stage()
        kit.unstage()
    with watched(kit, 2):
        with refused("FAILED_PRECONDITION", "still being used"):
            kit.stage(timeout=3)
        expect_daemons(node, 2)
        kit.stage()
        (kit.publish() / "file").write_text("written beside two mirror daemons")
        kit.unpublish()
        kit.unstage()
    with watched(kit, 3), refused("FAILED_PRECONDITION", "still being used", "client."):
        kit.stage(timeout=3)
    node.machine.assert_clean()


def test_an_image_that_is_not_mirrored_has_no_mirror_daemons(node: Node, refused: Refused) -> None:
    expect_daemons(node, 2)
    kit = node.make_volume()
    with watched(kit, 1), refused("FAILED_PRECONDITION", "still being used"):
        kit.stage(timeout=3)


def test_a_mirrored_volume_gets_its_luks_header_beside_the_mirror_daemons_and_nobody_else(
    node: Node, refused: Refused
) -> None:
    kit = node.make_volume(block(MODE.MULTI_NODE_MULTI_WRITER), size_bytes=64 * MIB, encrypted="true")
    node.rig.pool.enable_mirroring(kit.image, mode="snapshot")
    expect_daemons(node, 2)
    with watched(kit, 3), refused("FAILED_PRECONDITION", "LUKS header", "more than this node"):
        kit.stage()
    with watched(kit, 2):
        kit.stage()


def test_an_encrypted_image_with_a_journal_is_refused_by_the_mounter_that_cannot_open_it(
    node: Node, refused: Refused
) -> None:
    kit = node.make_volume(size_bytes=64 * MIB, encrypted="true")
    node.rig.pool.enable_mirroring(kit.image, mode="journal")
    before = kit.metadata()
    with refused("FAILED_PRECONDITION", "journaling", "qemu"):
        kit.stage()
    assert kit.metadata() == before
    assert list(kit.staging.iterdir()) == []
    node.machine.assert_clean()


@pytest.mark.parametrize("mode", ["journal", "snapshot"])
@pytest.mark.parametrize(
    "capability",
    [mounted(), mounted(MODE.MULTI_NODE_READER_ONLY), block(MODE.MULTI_NODE_MULTI_WRITER)],
    ids=["filesystem", "reader", "shared block"],
)
def test_a_mirrors_copy_is_not_staged_until_it_is_promoted(
    node: Node, refused: Refused, mode: str, capability: csi_pb2.VolumeCapability
) -> None:
    kit = node.make_volume(capability)
    kit.stage(volume_capability=mounted())
    kit.unstage()
    node.rig.pool.enable_mirroring(kit.image, mode=mode)
    node.rig.pool.rbd("mirror", "image", "demote", kit.image)
    before = kit.metadata()
    with refused("FAILED_PRECONDITION", "mirror's copy", "primary"):
        kit.stage()
    assert list(kit.staging.iterdir()) == []
    assert kit.metadata() == before
    node.machine.assert_clean()
    node.rig.pool.rbd("mirror", "image", "promote", kit.image)
    kit.stage()


def test_a_copy_that_was_never_used_is_neither_encrypted_nor_formatted(node: Node, refused: Refused) -> None:
    kits = [node.make_volume(size_bytes=64 * MIB), node.make_volume(size_bytes=64 * MIB, encrypted="true")]
    for kit in kits:
        node.rig.pool.enable_mirroring(kit.image, mode="snapshot")
        node.rig.pool.rbd("mirror", "image", "demote", kit.image)
        before = kit.metadata()
        with refused("FAILED_PRECONDITION", "mirror's copy"):
            kit.stage()
        assert kit.metadata() == before
    node.machine.assert_clean()
