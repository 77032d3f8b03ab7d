"""Block volumes that are mounted by another node of their device, as ceph-csi mounts those of dm-crypt."""

from collections.abc import Iterator

import pytest

from csi_host.node.mounts import mount_at, mounts_of_device
from csi_host.process import run
from csi_host.proto import csi_pb2
from csi_host.testing.device_nodes import another_node
from csi_host_rbd.attach.attacher import DeviceInUse
from csi_host_rbd.attach.block_devices import refuse_mounted
from csi_host_rbd.node.stash import STASH_NAME
from csi_host_rbd.testing.node_kit import GIB, Kit, Node, Refused
from csi_host_rbd.testing.rig import block

pytestmark = [pytest.mark.ceph, pytest.mark.root]

MODE = csi_pb2.VolumeCapability.AccessMode


@pytest.fixture
def kit(node: Node) -> Iterator[Kit]:
    """A block volume, staged and published, with mounts that ceph-csi made."""
    kit = node.make_volume(block(MODE.SINGLE_NODE_SINGLE_WRITER))
    kit.stage()
    run(["umount", str(kit.staged)], timeout=20)
    kit.target().parent.mkdir(parents=True)
    kit.target().touch()
    with another_node(kit.loop()) as theirs:
        run(["mount", "--bind", str(theirs), str(kit.staged)], timeout=20)
        run(["mount", "--bind", str(kit.staged), str(kit.target())], timeout=20)
        yield kit
        kit.unpublish()
        kit.unstage()


def mount_ids(kit: Kit) -> list[int]:
    mounts = [mount_at(place) for place in (kit.staged, kit.target())]
    return [mount.mount_id for mount in mounts if mount is not None]


def test_they_are_taken_over_as_they_are(kit: Kit, refused: Refused) -> None:
    before = mount_ids(kit)
    assert len(before) == 2
    kit.stage()
    kit.publish()
    assert mount_ids(kit) == before
    with refused("FAILED_PRECONDITION", str(kit.target()), "SINGLE_NODE_SINGLE_WRITER"):
        kit.publish("second")
    kit.grow_image(2 * GIB)
    assert kit.expand(2 * GIB) == 2 * GIB
    # The volume itself was staged all along: what is lost is what says so.
    (kit.staging / STASH_NAME).unlink()
    kit.stage()
    assert mount_ids(kit) == before


def test_a_device_is_not_taken_away_from_under_them(kit: Kit) -> None:
    with pytest.raises(DeviceInUse) as caught:
        refuse_mounted(kit.loop())
    assert str(kit.staged) in str(caught.value)
    assert str(kit.target()) in str(caught.value)


def test_without_a_stash_their_device_is_still_found_and_detached(kit: Kit, node: Node) -> None:
    device = kit.loop()
    (kit.staging / STASH_NAME).unlink()
    kit.unpublish()
    kit.unstage()
    assert mounts_of_device(device) == ()
    node.machine.assert_clean()
