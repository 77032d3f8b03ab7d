"""What a node refuses, with which code, and that the message names the field or the fact."""

import threading
from pathlib import Path

import grpc
import pytest

from csi_host.process import run
from csi_host.proto import csi_pb2
from csi_host_rbd.testing.node_kit import ImageOf, Node, Refused
from csi_host_rbd.testing.rig import block, mounted

pytestmark = [pytest.mark.ceph, pytest.mark.root]

MIB = 1024**2
GIB = 1024**3
MODE = csi_pb2.VolumeCapability.AccessMode
UNKNOWN_UUID = "11111111-2222-3333-4444-555555555555"


@pytest.mark.parametrize(
    ("secrets", "word"), [({}, "secrets"), ({"userID": "csi"}, "userKey"), ({"userKey": "x"}, "userID")]
)
def test_missing_credentials_are_named(node: Node, refused: Refused, secrets: dict[str, str], word: str) -> None:
    kit = node.make_volume()
    with refused("INVALID_ARGUMENT", word):
        kit.stage(secrets=secrets)
    assert list(kit.staging.iterdir()) == []


def test_a_wrong_key_is_refused_without_being_shown(node: Node) -> None:
    kit = node.make_volume()
    key = run(["ceph-authtool", "--gen-print-key"], timeout=20).stdout.strip()
    with pytest.raises(grpc.RpcError, match="connecting") as caught:
        kit.stage(secrets={"userID": "csi", "userKey": key})
    assert key not in str(caught.value)
    assert list(kit.staging.iterdir()) == []


@pytest.mark.parametrize("volume_id", ["fake-vol-id", "0001-0003-dev-junk", "x" * 128, "../../etc", ".."])
def test_a_junk_handle_is_not_found(node: Node, refused: Refused, volume_id: str) -> None:
    kit = node.make_volume()
    with refused("NOT_FOUND", "volume_id"):
        kit.stage(volume_id=volume_id)
    assert list(kit.staging.iterdir()) == []


def test_a_handle_that_nobody_made_is_not_found(node: Node, refused: Refused) -> None:
    kit = node.make_volume()
    with refused("NOT_FOUND", "journal"):
        kit.stage(volume_id=kit.volume.volume_id[:-36] + UNKNOWN_UUID)


def test_a_handle_of_a_pool_that_is_not_there_is_not_found(node: Node, refused: Refused) -> None:
    kit = node.make_volume()
    with refused("NOT_FOUND", "pool"):
        kit.stage(volume_id=kit.volume.volume_id[:-53] + "00000000deadbeef" + kit.volume.volume_id[-37:])


def test_a_handle_of_a_cluster_that_is_not_configured_says_so(node: Node, refused: Refused) -> None:
    with refused("FAILED_PRECONDITION", "cluster"):
        node.make_volume().stage(volume_id=f"0001-0005-other-0000000000000001-{UNKNOWN_UUID}")


def test_a_staging_path_that_is_missing_is_named(node: Node, refused: Refused) -> None:
    kit = node.make_volume()
    with refused("INVALID_ARGUMENT", "staging_target_path"):
        kit.stage(staging_target_path=str(node.directory / "nothing"))


@pytest.mark.parametrize("mode", [MODE.MULTI_NODE_MULTI_WRITER, MODE.MULTI_NODE_SINGLE_WRITER])
def test_a_filesystem_that_several_nodes_would_write_is_refused(
    node: Node, refused: Refused, mode: csi_pb2.VolumeCapability.AccessMode.Mode.ValueType
) -> None:
    kit = node.make_volume(mounted(mode))
    with refused("INVALID_ARGUMENT", "multi node"):
        kit.stage()
    with refused("INVALID_ARGUMENT", "multi node"):
        kit.publish()


def test_a_block_volume_may_be_written_by_several_nodes(node: Node, image_of: ImageOf) -> None:
    kit = node.make_volume(block(MODE.MULTI_NODE_MULTI_WRITER))
    with image_of(kit) as image:
        image.write(b"by another node", 0)
        kit.stage()
        with kit.publish().open("rb") as device:
            assert device.read(15) == b"by another node"


@pytest.mark.parametrize(
    ("context", "code", "word"),
    [
        ({"mounter": "qmeu"}, "INVALID_ARGUMENT", "mounter"),
        ({"mapOptions": "nbd:device=/dev/nbd7"}, "INVALID_ARGUMENT", "volume_context[mapOptions]"),
        ({"unmapOptions": "krbd:force;cow:x"}, "INVALID_ARGUMENT", "volume_context[unmapOptions]"),
        ({"tryOtherMounters": "perhaps"}, "INVALID_ARGUMENT", "tryOtherMounters"),
        ({"encrypted": "true"}, "FAILED_PRECONDITION", "encrypted"),
        ({"encrypted": "perhaps"}, "INVALID_ARGUMENT", "encrypted"),
        ({"staticVolume": "perhaps"}, "INVALID_ARGUMENT", "staticVolume"),
        ({"staticVolume": "true", "pool": ""}, "INVALID_ARGUMENT", "pool"),
        ({"staticVolume": "true", "clusterID": ""}, "INVALID_ARGUMENT", "clusterID"),
    ],
)
def test_a_context_that_cannot_be_served_is_named(
    node: Node, refused: Refused, context: dict[str, str], code: str, word: str
) -> None:
    kit = node.make_volume()
    with refused(code, word):
        kit.stage(volume_context={**kit.volume.volume_context, **context})
    assert list(kit.staging.iterdir()) == []


@pytest.mark.parametrize("fs_type", ["reiserfs", "ext2", "vfat", "; reboot"])
def test_a_filesystem_that_is_not_served_is_refused_before_anything_is_touched(
    node: Node, refused: Refused, fs_type: str
) -> None:
    kit = node.make_volume(mounted(fs_type=fs_type))
    with refused("INVALID_ARGUMENT", "fs_type"):
        kit.stage()
    assert kit.metadata() == {}
    node.machine.assert_clean()


def test_a_volume_that_is_staged_otherwise_already_exists(node: Node, refused: Refused) -> None:
    kit = node.make_volume(mounted(fs_type="xfs"))
    kit.stage()
    with refused("ALREADY_EXISTS", "filesystem"):
        kit.stage(volume_capability=block())


def test_a_volume_that_is_not_staged_cannot_be_published(node: Node, refused: Refused) -> None:
    kit = node.make_volume()
    with refused("FAILED_PRECONDITION", "stage"):
        kit.publish()
    with refused("FAILED_PRECONDITION", "staging_target_path"):
        kit.publish(staging_target_path="")
    assert not kit.target().exists()


def test_a_directory_that_a_reboot_left_is_not_published(node: Node, refused: Refused) -> None:
    kit = node.make_volume()
    kit.staged.mkdir(parents=True)
    with refused("FAILED_PRECONDITION", "stage"):
        kit.publish()


def test_a_filesystem_is_not_published_as_a_block_device(node: Node, refused: Refused) -> None:
    kit = node.make_volume(mounted(fs_type="xfs"))
    kit.stage()
    with refused("FAILED_PRECONDITION", "block device"):
        kit.publish(volume_capability=block())


def test_two_volumes_do_not_share_a_staging_path(node: Node, refused: Refused) -> None:
    first, second = node.make_volume(mounted()), node.make_volume(mounted())
    first.stage()
    with refused("FAILED_PRECONDITION", first.volume.volume_id):
        second.stage(staging_target_path=str(first.staging))
    second.unstage(staging_target_path=str(first.staging))
    assert first.publish().is_dir()


@pytest.mark.parametrize("capability", [mounted(MODE.MULTI_NODE_READER_ONLY), mounted(MODE.SINGLE_NODE_READER_ONLY)])
def test_a_reader_reads_what_is_there_and_writes_nothing(
    node: Node, refused: Refused, capability: csi_pb2.VolumeCapability
) -> None:
    kit = node.make_volume(mounted())
    kit.stage()
    (kit.publish() / "file").write_text("data")
    kit.unpublish()
    kit.unstage()
    kit.stage(volume_capability=capability)
    target = kit.publish(volume_capability=capability)
    assert (target / "file").read_text() == "data"
    with pytest.raises(OSError, match="Read-only"):
        (target / "other").write_text("x")
    with refused("FAILED_PRECONDITION", "read-only"):
        kit.publish("second")
    with refused("ALREADY_EXISTS", "read-only"):
        kit.stage()


@pytest.mark.parametrize("mode", [MODE.MULTI_NODE_READER_ONLY, MODE.SINGLE_NODE_READER_ONLY])
def test_a_block_volume_of_a_reader_cannot_be_written(
    node: Node, mode: csi_pb2.VolumeCapability.AccessMode.Mode.ValueType
) -> None:
    kit = node.make_volume(block(mode))
    kit.stage()
    with pytest.raises(PermissionError), kit.publish().open("r+b", buffering=0) as device:
        device.write(bytes(4096))


def test_publishing_read_only_keeps_the_other_target_writable(node: Node) -> None:
    kit = node.make_volume(mounted())
    kit.stage()
    writer, reader = kit.publish("writer"), kit.publish("reader", readonly=True)
    (writer / "file").write_text("data")
    assert (reader / "file").read_text() == "data"
    with pytest.raises(OSError, match="Read-only"):
        (reader / "file").write_text("x")


def test_growing_what_is_not_there_is_not_found(node: Node, refused: Refused) -> None:
    kit = node.make_volume()
    with refused("NOT_FOUND"):
        kit.expand(GIB, volume_id="unknown", volume_path="some/path", staging_target_path="")
    with refused("NOT_FOUND"):
        kit.expand(GIB)


def test_growing_beyond_the_image_says_that_the_controller_comes_first(node: Node, refused: Refused) -> None:
    kit = node.make_volume(mounted())
    kit.stage()
    kit.publish()
    with refused("FAILED_PRECONDITION", str(GIB), "ControllerExpandVolume"):
        kit.expand(2 * GIB)


def test_growing_another_volume_at_this_path_is_not_found(node: Node, refused: Refused) -> None:
    kit = node.make_volume(mounted())
    kit.stage()
    kit.publish()
    with refused("NOT_FOUND"):
        kit.expand(GIB, volume_id=kit.volume.volume_id[:-1] + "x", staging_target_path="")


def test_an_image_that_somebody_has_open_is_refused_naming_who(node: Node, refused: Refused, image_of: ImageOf) -> None:
    kit = node.make_volume()
    with image_of(kit):
        with refused("FAILED_PRECONDITION", "127.0.0.1", "client."):
            kit.stage(timeout=3)
        assert list(kit.staging.iterdir()) == []
        node.machine.assert_clean()
    kit.stage()


def test_a_stage_waits_for_the_last_user_to_go(node: Node, image_of: ImageOf) -> None:
    kit = node.make_volume(mounted())
    failures: list[Exception] = []

    def stage() -> None:
        try:
            kit.stage()
        except Exception as error:  # noqa: BLE001 (whatever it is, the test is to see it)
            failures.append(error)

    waiting = threading.Thread(target=stage)
    with image_of(kit):
        waiting.start()
        while not (kit.staging / "image-meta.json").exists():
            waiting.join(0.02)
        # Begun, and not done: it waits.
        waiting.join(0.5)
        assert waiting.is_alive()
        assert node.machine.daemons() == []
    waiting.join(30)
    assert failures == []
    assert kit.publish().is_dir()


def test_an_image_that_is_gone_is_not_found(node: Node, refused: Refused) -> None:
    kit = node.make_volume()
    node.rig.pool.rbd("rm", "--no-progress", kit.image)
    with refused("NOT_FOUND", kit.image):
        kit.stage()
    assert list(kit.staging.iterdir()) == []


def test_the_published_path_of_a_pod_is_not_cleared_of_what_is_not_ours(node: Node, refused: Refused) -> None:
    kit = node.make_volume()
    kit.target().mkdir(parents=True)
    (kit.target() / "precious").write_text("data")
    with refused("FAILED_PRECONDITION", "precious"):
        kit.unpublish()
    assert Path(kit.target() / "precious").read_text() == "data"
    (kit.target() / "precious").unlink()
