import pytest

from csi_host_rbd.fsck.names import (
    entry_of_object,
    is_csi_like,
    kind_of_directory,
    split_value,
    uuid_at_end,
    volume_of_temporary,
)
from csi_host_rbd.reservations import GROUPS, SNAPSHOTS, VOLUMES

UUID = "2a7c9c3e-0d5f-4c0e-9a52-6f0b7a1d9e11"


@pytest.mark.parametrize("name", [f"csi-vol-{UUID}", UUID, f"any-prefix{UUID}", f"csi-vol-{UUID.upper()}"])
def test_a_name_that_ends_in_a_uuid_may_be_a_volumes(name: str) -> None:
    assert uuid_at_end(name).lower() == UUID
    assert is_csi_like(name)


@pytest.mark.parametrize("name", ["", "image", f"{UUID}x", UUID[:-1], f"csi-vol-{UUID}\n", "g" + UUID[1:]])
def test_other_names_are_not(name: str) -> None:
    assert uuid_at_end(name) == ""
    assert not is_csi_like(name)


def test_the_image_between_is_told_from_the_volumes() -> None:
    assert volume_of_temporary(f"csi-vol-{UUID}-temp") == f"csi-vol-{UUID}"
    assert volume_of_temporary(f"csi-vol-{UUID}") == ""
    assert volume_of_temporary("image-temp") == ""
    assert is_csi_like(f"csi-vol-{UUID}-temp")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        (f"csi.volume.{UUID}", (VOLUMES, UUID)),
        (f"csi.snap.{UUID}", (SNAPSHOTS, UUID)),
        (f"csi.volume.group.{UUID}", (GROUPS, UUID)),
        ("csi.volumes.default", None),
        ("csi.volume.x", None),
        (f"rbd_id.{UUID}", None),
    ],
)
def test_entries_are_known_by_their_objects_names(name: str, found: object) -> None:
    assert entry_of_object(name) == found


def test_directories_of_all_instances_are_known() -> None:
    assert kind_of_directory("csi.volumes.default") is VOLUMES
    assert kind_of_directory("csi.snaps.other") is SNAPSHOTS
    assert kind_of_directory("csi.groups.default") is GROUPS
    assert kind_of_directory(f"csi.volume.{UUID}") is None


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        (UUID, ("", UUID)),
        (f"{'0' * 15}7/{UUID}", ("0" * 15 + "7", UUID)),
        (f"7/{UUID}", ("", "")),
        ("", ("", "")),
        (f"0001-0003-dev-{'0' * 16}-{UUID}", ("", "")),
    ],
)
def test_a_value_of_a_directory_is_a_uuid_with_or_without_a_pool(value: str, parts: tuple[str, str]) -> None:
    assert split_value(value) == parts
