"""Mutable parameters: what they become on an image, and what is refused before anything is written."""

import pytest

from csi_host.errors import InvalidArgument
from csi_host_rbd.image_metadata import MetadataChanges
from csi_host_rbd.modification import LIMITS, Modification, parse_modification


def test_the_limits_are_librbds_own_settings() -> None:
    found = parse_modification(
        {
            "maxIops": "1000", "maxReadIops": "800", "maxWriteIops": "600",
            "maxBps": "100Mi", "maxReadBps": "1Gi", "maxWriteBps": "52428800",
            "burstIops": "2000", "burstIopsSeconds": "10", "burstWriteBps": "64Mi",
        }
    ).values  # fmt: skip
    assert found == {
        "conf_rbd_qos_iops_limit": "1000",
        "conf_rbd_qos_read_iops_limit": "800",
        "conf_rbd_qos_write_iops_limit": "600",
        "conf_rbd_qos_bps_limit": "104857600",
        "conf_rbd_qos_read_bps_limit": "1073741824",
        "conf_rbd_qos_write_bps_limit": "52428800",
        "conf_rbd_qos_iops_burst": "2000",
        "conf_rbd_qos_iops_burst_seconds": "10",
        "conf_rbd_qos_write_bps_burst": "67108864",
    }


def test_metadata_keeps_its_name_so_it_can_never_be_a_setting_of_librbd_or_a_mark_of_ours() -> None:
    assert parse_modification({"metadata/team": "shop", "metadata/conf_x": "1"}).values == {
        "metadata/team": "shop",
        "metadata/conf_x": "1",
    }


@pytest.mark.parametrize(
    "name",
    ["maxiops", "iops", "MaxIops", "maxIopsSeconds", "burstSeconds", "conf_rbd_qos_iops_limit", "csi.volname", ""],
)
def test_an_unknown_key_is_refused_by_its_name(name: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_modification({"maxIops": "1", name: "1"})
    assert f"mutable_parameters[{name}]: unknown" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("maxIops", "0"), ("maxIops", "-1"), ("maxIops", "1.5"), ("maxIops", "1e3"), ("maxIops", "1Ki"),
        ("maxIops", "many"), ("maxIops", "٣"), ("maxIops", " 1"), ("maxIops", "9" * 16), ("maxBps", "10M"),
        ("maxBps", "10MiB"), ("maxBps", "Ki"), ("maxBps", f"{'9' * 15}Gi"), ("burstIopsSeconds", "86401"),
        ("burstBpsSeconds", "1Ki"), ("metadata/", "x"), (f"metadata/{'n' * 120}", "x"), ("metadata/a", "v" * 2049),
    ],
)  # fmt: skip
def test_a_value_that_is_no_such_number_is_refused_naming_the_key(name: str, text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_modification({name: text})
    assert f"mutable_parameters[{name[:40]}" in str(caught.value)


def test_an_empty_value_removes_and_what_is_so_already_is_no_step() -> None:
    asked = parse_modification({"maxIops": "", "maxReadIops": "100", "metadata/a": "", "metadata/b": "x"})
    present = {"conf_rbd_qos_iops_limit": "5", "conf_rbd_qos_read_iops_limit": "100", "metadata/c": "y"}
    assert asked.changes(present) == MetadataChanges(
        wanted={"metadata/b": "x"}, unwanted=frozenset({"conf_rbd_qos_iops_limit"})
    )


def test_a_burst_needs_its_limit_and_is_not_below_it_with_what_the_image_has_counted_in() -> None:
    burst = parse_modification({"burstIops": "200"})
    with pytest.raises(InvalidArgument, match="expected at least maxIops, which is not set"):
        burst.changes({})
    with pytest.raises(InvalidArgument, match="which is 300, got 200"):
        burst.changes({"conf_rbd_qos_iops_limit": "300"})
    assert burst.changes({"conf_rbd_qos_iops_limit": "200"}).wanted == {"conf_rbd_qos_iops_burst": "200"}
    with pytest.raises(InvalidArgument, match="burstIopsSeconds"):
        parse_modification({"maxIops": "1", "burstIopsSeconds": "5"}).changes({})


def test_a_limit_whose_burst_stays_cannot_be_removed_alone() -> None:
    present = {"conf_rbd_qos_iops_limit": "100", "conf_rbd_qos_iops_burst": "200"}
    with pytest.raises(InvalidArgument, match="burstIops"):
        parse_modification({"maxIops": ""}).changes(present)
    assert parse_modification({"maxIops": "", "burstIops": ""}).changes(present).unwanted == present.keys()


def test_what_another_tool_has_set_does_not_hinder_what_is_asked_for_beside_it() -> None:
    assert parse_modification({"metadata/a": "x"}).changes({"conf_rbd_qos_bps_burst": "junk"}).wanted == {
        "metadata/a": "x"
    }


def test_limits_are_refused_where_the_kernel_does_the_io_and_notes_are_not() -> None:
    with pytest.raises(InvalidArgument, match="rbd-nbd or qemu"):
        parse_modification({"maxIops": "1"}).check_mounter("rbd")
    for mounter in ("rbd-nbd", "qemu"):
        parse_modification({"maxIops": "1"}).check_mounter(mounter)
    parse_modification({"metadata/a": "x", "maxIops": ""}).check_mounter("rbd")
    Modification().check_mounter("rbd")


def test_a_clone_has_its_own_limits_and_notes_and_not_those_of_its_source() -> None:
    present = {"conf_rbd_qos_iops_limit": "5", "metadata/team": "shop", "csi.other": "kept", "conf_rbd_cache": "false"}
    asked = parse_modification({"maxIops": "7", "metadata/a": "b"})
    assert asked.changes_of_new(present, is_copy=True) == MetadataChanges(
        wanted={"conf_rbd_qos_iops_limit": "7", "metadata/a": "b"}, unwanted=frozenset({"metadata/team"})
    )
    assert Modification().changes_of_new(present, is_copy=False) == MetadataChanges()


@pytest.mark.ceph
def test_librbd_knows_every_setting() -> None:
    # Its own list, so that a name with a slip in it would not be metadata that means nothing.
    from csi_host.process import run  # noqa: PLC0415 - for this test alone

    known = run(["ceph-conf", "--show-config", "--conf", "/dev/null"], timeout=30).stdout
    for key in (key for limit in LIMITS for key in limit.keys):
        assert f"\n{key.removeprefix('conf_')} = " in known, key
