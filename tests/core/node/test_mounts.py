import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_host.node.mounts import (
    Location,
    Mount,
    is_mount_point,
    location_of,
    mount_at,
    mounts_below,
    mounts_of_device,
    mounts_showing,
    node_number,
    parse_mounts,
    read_mounts,
    resolve_parent,
    split_options,
    unescape,
)
from csi_host.testing.device_nodes import another_node

TABLE = rb"""21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro
22 21 0:6 / /dev rw,nosuid master:2 shared:7 - devtmpfs devtmpfs rw,size=4k
30 21 7:0 / /stage/vol\040one rw,noatime - ext4 /dev/loop0 rw
31 21 7:0 / /pods/a ro,relatime - ext4 /dev/loop0 rw
32 21 0:6 /loop0 /pods/block rw - devtmpfs devtmpfs rw
33 21 7:0 /gone//deleted /pods/gone rw - ext4 /dev/loop0 rw
34 21 0:40 / /stack rw - tmpfs lower rw
35 34 0:41 / /stack rw - tmpfs upper rw
36 35 0:42 / /stack/inside rw - tmpfs visible rw
37 34 0:43 / /stack/hidden rw - tmpfs covered rw
38 21 0:44 / /empty rw unbindable - tmpfs  rw
39 21 0:45 / /selinux rw - ext4 /dev/x rw,context="u:r:t:s0:c1,c2",lower=a\054b
"""


@pytest.fixture
def table() -> tuple[Mount, ...]:
    return parse_mounts(TABLE)


def _at(path: str, table: tuple[Mount, ...]) -> Mount:
    mount = mount_at(path, table)
    assert mount is not None
    return mount


def test_every_field_is_read(table: tuple[Mount, ...]) -> None:
    assert table[2] == Mount(
        mount_id=30,
        parent_id=21,
        device="7:0",
        root="/",
        mount_point="/stage/vol one",
        options=("rw", "noatime"),
        propagation=(),
        fs_type="ext4",
        source="/dev/loop0",
        super_options=("rw",),
    )
    assert table[1].propagation == ("master:2", "shared:7")


def test_an_empty_source_is_empty_and_shifts_nothing(table: tuple[Mount, ...]) -> None:
    mount = _at("/empty", table)
    assert (mount.source, mount.super_options, mount.propagation) == ("", ("rw",), ("unbindable",))


def test_commas_inside_an_option_do_not_split_it(table: tuple[Mount, ...]) -> None:
    assert _at("/selinux", table).super_options == ("rw", 'context="u:r:t:s0:c1,c2"', "lower=a,b")


def test_a_directory_inside_a_mount_is_none(table: tuple[Mount, ...]) -> None:
    assert mount_at("/pods/a/below", table) is None
    assert mount_at("/pods", table) is None
    assert not is_mount_point("/pods/", table)
    assert is_mount_point("/pods/a/", table)
    assert is_mount_point("/", table)


def test_of_a_stack_the_upper_mount_is_met_whatever_the_order(table: tuple[Mount, ...]) -> None:
    for order in (table, table[::-1]):
        assert _at("/stack", order).source == "upper"
        assert _at("/stack/inside", order).source == "visible"
        assert mount_at("/stack/hidden", order) is None


def test_what_is_read_only_and_what_was_deleted_is_told(table: tuple[Mount, ...]) -> None:
    assert _at("/pods/a", table).is_read_only
    assert not _at("/stage/vol one", table).is_read_only
    assert _at("/pods/gone", table).is_deleted
    assert not _at("/pods/a", table).is_deleted


def test_one_location_has_all_its_mounts(table: tuple[Mount, ...]) -> None:
    for place in ("/stage/vol one", "/pods/a"):
        assert [mount.mount_point for mount in mounts_showing(place, table)] == ["/stage/vol one", "/pods/a"]
    assert [mount.mount_point for mount in mounts_showing("/dev/loop0", table)] == ["/pods/block"]
    assert location_of("/dev/loop0", table) == _at("/pods/block", table).location
    assert location_of("/pods/a/sub/file", table) == Location(device="7:0", root="/sub/file")
    assert location_of("/anything", table) == Location(device="8:1", root="/anything")


def test_mounts_below_a_directory_are_strictly_below(table: tuple[Mount, ...]) -> None:
    assert [mount.mount_point for mount in mounts_below("/stack", table)] == ["/stack/inside", "/stack/hidden"]
    assert len(mounts_below("/", table)) == len(table) - 1


def test_without_a_root_nothing_is_found() -> None:
    assert mount_at("/anything", ()) is None
    assert location_of("/anything", ()) is None


@pytest.mark.parametrize("line", [b"21 1 8:1 / / rw,relatime", b"x", b"21 1 8:1 / / rw - ext4", b"a b c d e f - g h i"])
def test_half_a_line_is_an_error(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"mountinfo|invalid literal"):
        parse_mounts(line)


def _escape(text: bytes) -> bytes:
    """Escape as the kernel does (fs/proc_namespace.c)."""
    return b"".join(b"\\%03o" % byte if byte in b" \t\n\\#" else bytes([byte]) for byte in text)


NAMES = st.binary(max_size=40).filter(lambda name: b"\0" not in name)


@given(NAMES)
def test_unescaping_undoes_the_kernels_escaping(name: bytes) -> None:
    assert os.fsencode(unescape(_escape(name))) == name


@given(NAMES, NAMES)
def test_any_name_comes_through_a_line_of_the_table(source: bytes, name: bytes) -> None:
    line = b"1 0 8:1 /%b /%b rw - ext4 %b rw" % (_escape(name), _escape(name), _escape(source))
    (mount,) = parse_mounts(line + b"\n")
    assert os.fsencode(mount.mount_point) == b"/" + name
    assert os.fsencode(mount.root) == b"/" + name
    assert os.fsencode(mount.source) == source


@given(st.lists(st.text(alphabet='ab="', min_size=1).filter(lambda word: word.count('"') % 2 == 0)))
def test_options_split_where_they_were_joined(words: list[str]) -> None:
    assert list(split_options(",".join(words))) == words


def test_the_kernels_own_table_is_read_and_holds_the_root() -> None:
    mounts = read_mounts()
    assert len({mount.mount_id for mount in mounts}) == len(mounts)
    assert mount_at("/", mounts) is not None
    assert is_mount_point("/proc", mounts)


@pytest.mark.parametrize("name", ["plain", "with space", "tab\t", "new\nline", "back\\slash", "ünï", "\udcff"])
def test_a_bind_mount_on_the_same_filesystem_is_found_at_any_name(
    workdir: Path, bind: Callable[[Path, Path], None], name: str
) -> None:
    source, target = workdir / "source", workdir / name
    source.mkdir()
    target.mkdir()
    bind(source, target)
    assert source.stat().st_dev == target.stat().st_dev
    assert is_mount_point(target)
    assert not is_mount_point(source)
    assert location_of(source) == location_of(target)


def test_a_link_in_the_parent_is_followed_and_one_at_the_end_is_not(
    workdir: Path, bind: Callable[[Path, Path], None]
) -> None:
    (workdir / "real/target").mkdir(parents=True)
    (workdir / "parent").symlink_to("real")
    (workdir / "link").symlink_to("real/target")
    bind(workdir / "real", workdir / "real/target")
    assert is_mount_point(workdir / "parent/target")
    assert is_mount_point(f"{workdir}/parent/../real/target/")
    assert not is_mount_point(workdir / "link")
    assert not is_mount_point(workdir / "absent/target")


def test_relative_paths_are_resolved(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workdir)
    assert resolve_parent("name") == f"{workdir}/name"
    assert resolve_parent(".") == str(workdir)
    assert resolve_parent("..") == str(workdir.parent)
    assert resolve_parent("/") == "/"
    assert resolve_parent("/name") == "/name"


def test_a_deleted_source_is_told(workdir: Path, bind: Callable[[Path, Path], None]) -> None:
    (workdir / "source").mkdir()
    (workdir / "target").mkdir()
    bind(workdir / "source", workdir / "target")
    (workdir / "source").rmdir()
    mount = mount_at(workdir / "target")
    assert mount is not None
    assert mount.is_deleted


def test_all_users_of_a_block_device_are_found(
    make_volume: Callable[..., Any], workdir: Path, bind: Callable[[Path, Path], None]
) -> None:
    volume = make_volume()
    (workdir / "bound").mkdir()
    (workdir / "node").touch()
    (workdir / "link").symlink_to(volume.device)
    bind(volume.path, workdir / "bound")
    bind(Path(volume.device), workdir / "node")
    expected = {str(volume.path), str(workdir / "bound"), str(workdir / "node")}
    assert {mount.mount_point for mount in mounts_of_device(volume.device)} == expected
    assert {mount.mount_point for mount in mounts_of_device(workdir / "link")} == expected
    with pytest.raises(FileNotFoundError):
        mounts_of_device(workdir / "absent")


def test_a_device_is_known_by_its_number_whatever_its_node_is_called(
    make_volume: Callable[..., Any], workdir: Path, bind: Callable[[Path, Path], None]
) -> None:
    volume, other = make_volume(), make_volume()
    (workdir / "mapped").touch()
    (workdir / "renamed").touch()
    with another_node(volume.device) as node:
        bind(node, workdir / "mapped")
        (mapped,) = mounts_showing(node)
        assert mapped.mount_point == str(workdir / "mapped")
        node.unlink()
        number = Path(other.device).stat().st_rdev
        os.mknod(node, stat.S_IFBLK | 0o600, number)
        bind(node, workdir / "renamed")
        # Of one name, which was removed and made anew: each is what it was when it was bound.
        for device, place in ((volume, "mapped"), (other, "renamed")):
            expected = {str(device.path), str(workdir / place)}
            assert {mount.mount_point for mount in mounts_of_device(device.device)} == expected
            assert [mount.mount_point for mount in mounts_showing(workdir / place)] == [str(workdir / place)]
        renamed = mount_at(workdir / "renamed")
        assert renamed is not None
        assert node_number(renamed) == f"{os.major(number)}:{os.minor(number)}"


def test_only_a_node_that_is_met_has_a_number(
    make_volume: Callable[..., Any], workdir: Path, bind: Callable[[Path, Path], None]
) -> None:
    volume, other = make_volume(), make_volume()
    (workdir / "node").touch()
    bind(Path(volume.device), workdir / "node")
    lower = mount_at(workdir / "node")
    bind(Path(other.device), workdir / "node")
    upper, filesystem, devices = (mount_at(place) for place in (workdir / "node", volume.path, "/dev"))
    assert lower is not None
    assert upper is not None
    assert filesystem is not None
    assert devices is not None
    assert [node_number(mount) is None for mount in (lower, upper, filesystem, devices)] == [True, False, True, True]
    # What is covered is still known by its place, so that nobody takes its device for unused.
    assert lower in mounts_of_device(volume.device)


def test_a_mount_that_a_later_mount_covers_is_not_a_mount_point(workdir: Path) -> None:
    (workdir / "outer/inner").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "inner", workdir / "outer/inner"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "outer", workdir / "outer"], check=True)
    assert is_mount_point(workdir / "outer")
    assert not is_mount_point(workdir / "outer/inner")
    subprocess.run(["umount", workdir / "outer"], check=True)
    assert is_mount_point(workdir / "outer/inner")
    subprocess.run(["umount", workdir / "outer/inner"], check=True)
