import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from csi_host.errors import FailedPrecondition
from csi_host.node.stats import filesystem_stats
from csi_host.process import run
from csi_host_common_node.filesystem import Filesystems
from csi_host_common_node.mounter import Mounter
from csi_host_common_node.resize import Grower, effective_capabilities

MIB = 1024**2
CAP_SYS_RESOURCE = 24


@pytest.fixture
def grower() -> Grower:
    return Grower(run)


def _total(place: Path) -> int:
    usage = filesystem_stats(place).bytes
    assert usage is not None
    return usage.total


@pytest.mark.parametrize("fs_type", ["xfs", "btrfs"])
def test_an_xfs_or_btrfs_grows_while_it_is_mounted(
    make_disk: Callable[..., Any], workdir: Path, mounter: Mounter, grower: Grower, fs_type: str
) -> None:
    disk, place = make_disk(320 * MIB), workdir / "mounted"
    place.mkdir()
    Filesystems(run).format(disk.device, fs_type)
    mounter.mount(disk.device, place, fs_type)
    (place / "file").write_bytes(b"data" * 1000)
    before = _total(place)
    assert not grower.needs_growing(disk.device, place)
    disk.resize(448 * MIB)
    assert grower.needs_growing(disk.device, place)
    grower.grow(disk.device, place)
    assert not grower.needs_growing(disk.device, place)
    assert _total(place) == before + 128 * MIB
    assert (place / "file").read_bytes() == b"data" * 1000
    mounter.unmount(place)


@pytest.mark.parametrize("fs_type", ["xfs", "btrfs"])
def test_what_grows_online_only_waits_until_it_is_mounted(
    make_disk: Callable[..., Any], grower: Grower, fs_type: str
) -> None:
    disk = make_disk(320 * MIB)
    Filesystems(run).format(disk.device, fs_type)
    disk.resize(448 * MIB)
    assert not grower.needs_growing(disk.device)
    grower.grow(disk.device)


@pytest.mark.parametrize("fs_type", ["ext4", "ext3"])
def test_an_ext_grows_before_it_is_mounted(
    disk: Any, workdir: Path, mounter: Mounter, grower: Grower, fs_type: str
) -> None:
    place = workdir / "mounted"
    place.mkdir()
    Filesystems(run).format(disk.device, fs_type)
    mounter.mount(disk.device, place, fs_type)
    (place / "file").write_text("kept")
    before = _total(place)
    mounter.unmount(place)
    assert not grower.needs_growing(disk.device)
    disk.resize(200 * MIB)
    assert grower.needs_growing(disk.device)
    grower.grow(disk.device)
    assert not grower.needs_growing(disk.device)
    mounter.mount(disk.device, place, fs_type)
    assert _total(place) > before + 120 * MIB
    assert (place / "file").read_text() == "kept"
    mounter.unmount(place)


def test_a_mounted_ext4_grows_or_the_error_names_the_missing_capability(
    disk: Any, staged: Path, grower: Grower
) -> None:
    before = _total(staged)
    disk.resize(200 * MIB)
    assert grower.needs_growing(disk.device, staged)
    if effective_capabilities() >> CAP_SYS_RESOURCE & 1:
        grower.grow(disk.device, staged)
        assert _total(staged) > before + 120 * MIB
    else:
        with pytest.raises(FailedPrecondition, match="growing a mounted ext4 needs CAP_SYS_RESOURCE"):
            grower.grow(disk.device, staged)
        assert _total(staged) == before


def test_without_the_capability_resize2fs_is_not_even_started(disk: Any, staged: Path, runner: Any) -> None:
    disk.resize(200 * MIB)
    with pytest.raises(FailedPrecondition, match="CAP_SYS_RESOURCE"):
        Grower(runner, capabilities=lambda: ~(1 << CAP_SYS_RESOURCE)).grow(disk.device, staged)
    assert "resize2fs" not in runner.programs()


def test_a_read_only_mount_and_a_read_only_device_do_not_grow(
    disk: Any, workdir: Path, mounter: Mounter, grower: Grower, read_only: Callable[[str], None]
) -> None:
    place = workdir / "mounted"
    place.mkdir()
    Filesystems(run).format(disk.device, "ext4")
    disk.resize(200 * MIB)
    mounter.mount(disk.device, place, "ext4", ["ro"])
    assert not grower.needs_growing(disk.device, place)
    mounter.unmount(place)
    read_only(disk.device)
    assert not grower.needs_growing(disk.device)


def test_an_ext4_that_cannot_use_the_rest_of_the_device_does_not_ask_for_it(
    make_disk: Callable[..., Any], grower: Grower
) -> None:
    disk = make_disk(128 * MIB)
    Filesystems(run).format(disk.device, "ext4", "-b 4096 -m0")
    disk.resize(129 * MIB)
    assert not grower.needs_growing(disk.device)
    disk.resize(160 * MIB)
    assert grower.needs_growing(disk.device)
    grower.grow(disk.device)
    assert not grower.needs_growing(disk.device)


def test_a_device_without_a_filesystem_cannot_grow(disk: Any, grower: Grower) -> None:
    with pytest.raises(FailedPrecondition, match="no filesystem"):
        grower.needs_growing(disk.device)
    run(["mkswap", disk.device], timeout=10)
    with pytest.raises(FailedPrecondition, match="swap"):
        grower.grow(disk.device)


def test_the_mount_of_another_device_is_not_grown_by_mistake(
    make_disk: Callable[..., Any], staged: Path, grower: Grower
) -> None:
    other = make_disk()
    Filesystems(run).format(other.device, "ext4")
    with pytest.raises(FailedPrecondition, match=str(staged)):
        grower.grow(other.device, staged)


def test_a_btrfs_of_several_devices_is_not_grown(
    make_disk: Callable[..., Any], workdir: Path, mounter: Mounter, grower: Grower
) -> None:
    first, second, place = make_disk(320 * MIB), make_disk(320 * MIB), workdir / "mounted"
    place.mkdir()
    Filesystems(run).format(first.device, "btrfs")
    mounter.mount(first.device, place, "btrfs")
    run(["btrfs", "device", "add", "-K", second.device, str(place)], timeout=60)
    first.resize(448 * MIB)
    with pytest.raises(FailedPrecondition, match="2 devices"):
        grower.grow(first.device, place)
    run(["btrfs", "device", "remove", second.device, str(place)], timeout=60)
    mounter.unmount(place)


def test_the_capabilities_are_those_of_the_kernel() -> None:
    # capget(2) with version 3: two words of effective, permitted and inheritable bits.
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    words = (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None, use_errno=True).capget(header, words) == 0
    assert effective_capabilities() == words[0] | words[3] << 32
    assert os.getpid() == threading.get_native_id()
