"""What a node notes in an image's metadata does not need the exclusive lock, which is the mapped client's."""

import pytest

from csi_host_rbd.devcluster import DevCluster
from csi_host_rbd.encryption.state import STATE
from csi_host_rbd.node.image import NodeImage
from csi_host_rbd.testing.node_kit import MakeNodeImage

pytestmark = pytest.mark.ceph

MIB = 1024**2


@pytest.fixture
def locked(ceph: DevCluster, make_node_image: MakeNodeImage) -> NodeImage:
    """An image that is locked as `mapOptions: krbd:exclusive` does it: by a client that never gives the lock up."""
    image = make_node_image(64 * MIB)
    ceph.rbd("--pool", image.pool.name, "lock", "add", image.name, "mapped")
    return image


def test_the_marks_around_mkfs_are_written(locked: NodeImage) -> None:
    locked.write_mark("formatting ext4")
    assert locked.read_mark() == "formatting ext4"
    locked.write_mark("formatted ext4")
    assert locked.read_mark() == "formatted ext4"


def test_the_state_of_encryption_is_written_and_a_mark_removed(locked: NodeImage) -> None:
    locked.write_metadata(STATE, "encrypted")
    locked.write_metadata("mark", "formatting")
    locked.write_metadata("mark", None)
    assert locked.metadata() == {STATE: "encrypted"}
