import json
import stat
from pathlib import Path

import pytest

from csi_host_rbd.node.stash import STASH_NAME, Stash, StashUnreadable, read_stash, remove_stash, write_stash

FULL = Stash(
    pool="rbd",
    namespace="tenant",
    image="csi-vol-1",
    cluster_id="ceph-a",
    volume_id="0001-x",
    mounter="qemu",
    unmap_options="force",
    device="",
    log_directory="/var/log/ceph",
    log_strategy="remove",
)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    write_stash(tmp_path, FULL)
    assert read_stash(tmp_path) == FULL


def test_the_file_has_the_names_of_ceph_csi_and_nobody_else_can_read_it(tmp_path: Path) -> None:
    write_stash(tmp_path, FULL)
    members = json.loads((tmp_path / STASH_NAME).read_text())
    expected = {
        "Version": 3,
        "pool": "rbd",
        "radosNamespace": "tenant",
        "image": "csi-vol-1",
        "unmapOptions": "force",
        "accessType": False,
        "encrypted": False,
        "device": "",
        "logDir": "/var/log/ceph",
        "logFileStrategy": "remove",
    }
    assert {name: members[name] for name in expected} == expected
    assert stat.S_IMODE((tmp_path / STASH_NAME).stat().st_mode) == 0o600


def test_a_write_replaces_the_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / STASH_NAME).write_text("half a")
    write_stash(tmp_path, FULL)
    assert [path.name for path in tmp_path.iterdir()] == [STASH_NAME]


def test_a_version_2_file_is_read() -> None:
    stash = Stash.parse('{"Version":2,"pool":"rbd","image":"csi-vol-1","accessType":true,"encrypted":true}')
    assert stash == Stash(pool="rbd", image="csi-vol-1", mounter="rbd-nbd", encrypted=True)


def test_a_version_3_file_of_ceph_csi_is_read() -> None:
    text = (
        '{"Version":3,"pool":"rbd","radosNamespace":"ns","image":"i","unmapOptions":"","accessType":false,'
        '"encrypted":false,"device":"","logDir":"/var/log/ceph","logFileStrategy":"remove"}'
    )
    assert Stash.parse(text) == Stash(
        pool="rbd", namespace="ns", image="i", log_directory="/var/log/ceph", log_strategy="remove"
    )


def test_unknown_members_are_ignored() -> None:
    assert Stash.parse('{"Version":4,"pool":"rbd","image":"i","new":{"a":1}}').image == "i"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "JSON"),
        ('{"pool":"rbd"', "JSON"),
        ("[]", "JSON object"),
        ('{"pool":"rbd"}', "image"),
        ('{"pool":"","image":"i"}', "pool"),
        ('{"pool":"rbd","image":7}', "image"),
        ('{"pool":"rbd","image":"i","accessType":"yes"}', "accessType"),
    ],
)
def test_a_damaged_file_is_an_error_that_names_the_file_and_the_member(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / STASH_NAME).write_text(text)
    with pytest.raises(StashUnreadable) as caught:
        read_stash(tmp_path)
    assert named in str(caught.value)
    assert str(tmp_path / STASH_NAME) in str(caught.value)


def test_bytes_that_are_no_text_are_an_error_too(tmp_path: Path) -> None:
    (tmp_path / STASH_NAME).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StashUnreadable):
        read_stash(tmp_path)


def test_no_file_and_no_directory_mean_no_stash(tmp_path: Path) -> None:
    assert read_stash(tmp_path) is None
    assert read_stash(tmp_path / "gone") is None


def test_removing_takes_a_cut_off_write_along_and_can_be_repeated(tmp_path: Path) -> None:
    write_stash(tmp_path, FULL)
    (tmp_path / f".{STASH_NAME}.abc").write_text("{")
    remove_stash(tmp_path)
    assert list(tmp_path.iterdir()) == []
    remove_stash(tmp_path)
    remove_stash(tmp_path / "gone")
