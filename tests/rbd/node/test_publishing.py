"""What a node publishes, and in which way; what it refuses to show at a target."""

import pytest

from csi_host.process import run
from csi_host.proto import csi_pb2
from csi_host_rbd.testing.node_kit import Node, Refused
from csi_host_rbd.testing.rig import block, mounted

pytestmark = [pytest.mark.ceph, pytest.mark.root]

MODE = csi_pb2.VolumeCapability.AccessMode


def test_a_single_writer_has_one_target(node: Node, refused: Refused) -> None:
    for capability in (mounted(MODE.SINGLE_NODE_SINGLE_WRITER), block(MODE.SINGLE_NODE_SINGLE_WRITER)):
        kit = node.make_volume(capability)
        kit.stage()
        first = kit.publish("first")
        kit.publish("first")
        with refused("FAILED_PRECONDITION", str(first), "SINGLE_NODE_SINGLE_WRITER"):
            kit.publish("second")
        assert not kit.target("second").exists()
        kit.unpublish("first")
        kit.publish("second")
        kit.unpublish("second")


@pytest.mark.parametrize("capability", [mounted(MODE.SINGLE_NODE_SINGLE_WRITER), block(MODE.SINGLE_NODE_SINGLE_WRITER)])
def test_a_mount_that_the_caller_makes_of_the_target_is_not_in_the_way_of_a_retry(
    node: Node, refused: Refused, capability: csi_pb2.VolumeCapability
) -> None:
    kit = node.make_volume(capability)
    kit.stage()
    first, theirs = kit.publish("first"), kit.target("caller")
    theirs.parent.mkdir(parents=True)
    theirs.mkdir() if first.is_dir() else theirs.touch()
    run(["mount", "--bind", str(first), str(theirs)], timeout=20)
    assert kit.publish("first") == first
    with refused("ALREADY_EXISTS", "for writing"):
        kit.publish("first", readonly=True)
    with refused("FAILED_PRECONDITION", str(first), "SINGLE_NODE_SINGLE_WRITER"):
        kit.publish("second")


@pytest.mark.parametrize("is_static", [False, True])
def test_the_plain_root_of_what_is_encrypted_by_files_is_not_shown(
    node: Node, refused: Refused, *, is_static: bool
) -> None:
    kit = node.make_volume()
    kit.stage()
    theirs = {"encrypted": "true", "encryptionType": "file"} | ({"staticVolume": "true"} if is_static else {})
    context = dict(kit.volume.volume_context) | theirs
    with refused("INVALID_ARGUMENT", "volume_context[encryptionType]", "file"):
        kit.stage(volume_context=context)
    with refused("INVALID_ARGUMENT", "volume_context[encryptionType]", "file"):
        kit.publish(volume_context=context)
    assert not kit.target().exists()
    # What is there already is taken away as ever: those calls have no context.
    kit.publish()
    kit.unpublish()
    kit.unstage()
    node.machine.assert_clean()
    with refused("INVALID_ARGUMENT", "volume_context[encryptionType]", "file"):
        kit.stage(volume_context=context)
    assert list(kit.staging.iterdir()) == []
