import pytest

from csi_host.access import AccessMode, VolumeAccess
from csi_host.capacity import CapacityRange
from csi_host.errors import InvalidArgument
from csi_host.proto import csi_pb2
from csi_host.services.messages import access_of, capacity_range_of


def capability(mode: int) -> csi_pb2.VolumeCapability:
    made = csi_pb2.VolumeCapability()
    made.access_mode.mode = mode  # type: ignore[assignment] # proto3 enums are open
    return made


def test_a_filesystem_keeps_its_flags_whole() -> None:
    wanted = capability(1)
    wanted.mount.fs_type = "xfs"
    wanted.mount.mount_flags.extend(["noatime", 'context="system_u:object_r:t:s0:c1,c2"'])
    wanted.mount.volume_mount_group = "1000"
    assert access_of(wanted) == VolumeAccess(
        mode=AccessMode.SINGLE_NODE_WRITER,
        is_block=False,
        fs_type="xfs",
        mount_flags=("noatime", 'context="system_u:object_r:t:s0:c1,c2"'),
        volume_mount_group="1000",
    )


def test_a_block_device_has_nothing_but_a_mode() -> None:
    wanted = capability(5)
    wanted.block.SetInParent()
    assert access_of(wanted) == VolumeAccess(mode=AccessMode.MULTI_NODE_MULTI_WRITER, is_block=True)


@pytest.mark.parametrize("mode", csi_pb2.VolumeCapability.AccessMode.Mode.items())
def test_every_mode_of_the_spec_has_its_domain_value(mode: tuple[str, int]) -> None:
    name, number = mode
    wanted = capability(number)
    wanted.block.SetInParent()
    assert access_of(wanted).mode.name == name


def test_a_capability_without_a_type_or_with_a_later_mode_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="access_type: required"):
        access_of(capability(1))
    later = capability(99)
    later.block.SetInParent()
    with pytest.raises(InvalidArgument, match="got 99"):
        access_of(later)


def test_an_unset_capacity_range_is_none_and_an_empty_one_is_not() -> None:
    assert capacity_range_of(csi_pb2.CreateVolumeRequest()) is None
    empty = csi_pb2.CreateVolumeRequest(capacity_range=csi_pb2.CapacityRange())
    assert capacity_range_of(empty) == CapacityRange()
    asked = csi_pb2.NodeExpandVolumeRequest(capacity_range=csi_pb2.CapacityRange(required_bytes=5, limit_bytes=9))
    assert capacity_range_of(asked) == CapacityRange(required_bytes=5, limit_bytes=9)
