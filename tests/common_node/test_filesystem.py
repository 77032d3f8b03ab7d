import os
import struct
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from csi_host.errors import InvalidArgument
from csi_host.process import ProcessError, ProcessResult, ProcessTimeout, run
from csi_host_common_node.filesystem import (
    Blank,
    DeviceNotBlank,
    DeviceUnclear,
    FilesystemDamaged,
    Filesystems,
    Has,
)
from csi_host_common_node.mounter import Mounter

MIB = 1024**2
FS_SIZE = {"ext4": 64 * MIB, "ext3": 64 * MIB, "xfs": 320 * MIB, "btrfs": 128 * MIB}


@pytest.fixture
def filesystems() -> Filesystems:
    return Filesystems(run)


@pytest.mark.parametrize("fs_type", ["ext4", "ext3", "xfs", "btrfs"])
def test_a_blank_device_is_formatted_and_can_be_mounted(
    make_disk: Callable[..., Any], workdir: Path, filesystems: Filesystems, mounter: Mounter, fs_type: str
) -> None:
    disk = make_disk(FS_SIZE[fs_type])
    assert filesystems.content_of(disk.device) == Blank()
    filesystems.format(disk.device, fs_type, label="data")
    assert filesystems.content_of(disk.device) == Has(kind=fs_type)
    filesystems.check(disk.device, fs_type)
    place = workdir / "mounted"
    place.mkdir()
    mounter.mount(disk.device, place, fs_type)
    (place / "file").write_text("written")
    mounter.unmount(place)


def test_an_empty_type_is_ext4(disk: Any, filesystems: Filesystems) -> None:
    filesystems.format(disk.device, "")
    assert filesystems.content_of(disk.device) == Has(kind="ext4")


def test_the_volume_has_no_reserved_blocks_and_options_replace_the_defaults(
    make_disk: Callable[..., Any], filesystems: Filesystems
) -> None:
    default, chosen = make_disk(), make_disk()
    filesystems.format(default.device, "ext4")
    filesystems.format(chosen.device, "ext4", "-m 10 -L 'two words'")
    assert "Reserved block count:     0" in _superblock(default)
    assert "Reserved block count:     0" not in _superblock(chosen)
    assert "two words" in _superblock(chosen)


def test_an_xfs_has_no_reflinks_unless_the_options_say_so(
    make_disk: Callable[..., Any], workdir: Path, filesystems: Filesystems, mounter: Mounter
) -> None:
    for options, expected in (("", "reflink=0"), ("-K -m reflink=1", "reflink=1")):
        disk = make_disk(FS_SIZE["xfs"])
        filesystems.format(disk.device, "xfs", options)
        place = workdir / expected
        place.mkdir()
        mounter.mount(disk.device, place, "xfs")
        assert expected in run(["xfs_info", str(place)], timeout=10).stdout
        mounter.unmount(place)


@pytest.mark.parametrize(
    ("fs_type", "options", "named"),
    [
        ("ntfs", "", "fs_type"),
        ("ext4", "-J device=/dev/null", "mkfsOptions"),
        ("ext4", "/dev/vda", "mkfsOptions"),
        ("ext4", "-L 'open", "mkfsOptions"),
    ],
)
def test_a_wrong_type_or_option_is_refused_before_anything_is_started(
    disk: Any, runner: Any, fs_type: str, options: str, named: str
) -> None:
    with pytest.raises(InvalidArgument, match=named):
        Filesystems(runner).format(disk.device, fs_type, options)
    assert runner.started == []


def _blkid_fails(argv: Any, **_: Any) -> ProcessResult:
    raise ProcessError(argv, "exit code 4: usage", exit_code=4)


def _blkid_hangs(argv: Any, **_: Any) -> ProcessResult:
    raise ProcessTimeout(argv, "did not end within 30 s and was killed")


def _blkid_is_killed(argv: Any, **_: Any) -> ProcessResult:
    raise ProcessError(argv, "exit code -9: no output", exit_code=-9)


def _blkid_is_ambivalent(argv: Any, **_: Any) -> ProcessResult:
    raise ProcessError(argv, "exit code 8: ambivalent", exit_code=8)


def _blkid_says_yes_to_nothing(_: Any, **__: Any) -> ProcessResult:
    return ProcessResult(exit_code=0, stdout="DEVNAME=/dev/x\n", stderr="")


@pytest.mark.parametrize(
    "blkid", [_blkid_fails, _blkid_hangs, _blkid_is_killed, _blkid_is_ambivalent, _blkid_says_yes_to_nothing]
)
def test_no_clear_answer_of_blkid_never_formats(disk: Any, runner: Any, blkid: Any) -> None:
    Filesystems(run).format(disk.device, "ext4")
    before = disk.checksum()
    runner.instead["blkid"] = blkid
    with pytest.raises(DeviceUnclear, match=disk.device):
        Filesystems(runner).format(disk.device, "ext4")
    assert "mkfs.ext4" not in runner.programs()
    assert disk.checksum() == before


def test_blkid_saying_nothing_found_of_a_filesystem_never_formats(disk: Any, runner: Any) -> None:
    Filesystems(run).format(disk.device, "ext4")
    before = disk.checksum()
    runner.instead["blkid"] = lambda *_, **__: ProcessResult(exit_code=2, stdout="", stderr="")
    with pytest.raises(DeviceNotBlank, match=r"data at byte 1\d{3} "):
        Filesystems(runner).format(disk.device, "ext4")
    assert "mkfs.ext4" not in runner.programs()
    assert disk.checksum() == before


def _wipe_superblock(disk: Any) -> None:
    Filesystems(run).format(disk.device, "ext4")
    disk.write(bytes(MIB))


def _write_late_data(disk: Any) -> None:
    disk.write(b"late", at=40 * MIB + 12345)


def _write_last_byte(disk: Any) -> None:
    disk.write(b"!", at=64 * MIB - 1)


def _write_partitions(disk: Any) -> None:
    # One partition of Linux' type, 8 MiB at sector 2048, in a table of the DOS kind.
    entry = bytes([0, 0, 33, 3, 0x83, 254, 254, 254]) + (2048).to_bytes(4, "little") + (16384).to_bytes(4, "little")
    disk.write(bytes(446) + entry + bytes(48) + b"\x55\xaa")


def _write_luks(disk: Any) -> None:
    # Version 1: cipher, mode, hash, payload's sector, key's bytes, digest, salt, iterations, UUID, eight empty slots.
    header = struct.pack(">6sH32s32s32sII", b"LUKS\xba\xbe", 1, b"aes", b"xts-plain64", b"sha256", 4096, 64)
    header += bytes(range(20)) + bytes(range(32)) + struct.pack(">I40s", 1000, str(uuid.UUID(int=1)).encode())
    header += b"".join(struct.pack(">II32xII", 0xDEAD, 0, 8 + 504 * slot, 4000) for slot in range(8))
    disk.write(header)


def _write_xfs_superblock(disk: Any) -> None:
    disk.write(b"XFSB" + (4096).to_bytes(4, "big"))


@pytest.mark.parametrize(
    ("fill", "named"),
    [
        (_wipe_superblock, "data at byte"),
        (_write_late_data, str(40 * MIB + 12345)),
        (_write_last_byte, str(64 * MIB - 1)),
        (_write_partitions, r"a partition table \(dos\)"),
        (_write_luks, "crypto_LUKS"),
        (_write_xfs_superblock, "data at byte 0"),
    ],
)
def test_a_device_with_data_is_never_formatted(disk: Any, runner: Any, fill: Any, named: str) -> None:
    fill(disk)
    before = disk.checksum()
    for device in (disk.device, str(disk.file)):
        with pytest.raises(DeviceNotBlank, match=named):
            Filesystems(runner).format(device, "ext4")
    assert "mkfs.ext4" not in runner.programs()
    assert disk.checksum() == before


def test_data_that_was_written_to_the_device_only_is_seen(disk: Any, filesystems: Filesystems) -> None:
    descriptor = os.open(disk.device, os.O_WRONLY)
    try:
        os.pwrite(descriptor, b"not yet in the file", 20 * MIB)
        with pytest.raises(DeviceNotBlank, match=str(20 * MIB)):
            filesystems.prove_blank(disk.device)
    finally:
        os.close(descriptor)


def test_a_large_sparse_device_is_proven_blank_without_reading_all_of_it(
    make_disk: Callable[..., Any], runner: Any
) -> None:
    disk = make_disk(4096 * 1024 * MIB)
    filesystems = Filesystems(runner, blank_seconds=5)
    assert filesystems.prove_blank(disk.device).size_bytes == 4096 * 1024 * MIB
    disk.write(b"needle", at=3000 * 1024 * MIB + 17)
    with pytest.raises(DeviceNotBlank, match=str(3000 * 1024 * MIB + 17)):
        filesystems.prove_blank(disk.device)


def test_a_loop_device_on_a_part_of_its_file_is_read_itself(workdir: Path, filesystems: Filesystems) -> None:
    file = workdir / "file"
    file.write_bytes(bytes(8 * MIB) + b"data" + bytes(8 * MIB - 4))
    with file.open("r+b") as content:
        content.truncate(64 * MIB)
    device = run(["losetup", "--find", "--show", "--offset", str(4 * MIB), str(file)], timeout=10).stdout.strip()
    try:
        with pytest.raises(DeviceNotBlank, match=f"byte {4 * MIB} "):
            filesystems.prove_blank(device)
    finally:
        run(["losetup", "--detach", device], timeout=10)


def test_a_file_of_an_odd_size_is_read_to_its_last_byte(workdir: Path, filesystems: Filesystems) -> None:
    file = workdir / "file"
    file.write_bytes(bytes(2 * MIB + 101))
    assert filesystems.prove_blank(file).size_bytes == 2 * MIB + 101
    file.write_bytes(bytes(2 * MIB + 100) + b"!")
    with pytest.raises(DeviceNotBlank, match=str(2 * MIB + 100)):
        filesystems.prove_blank(file)


def test_a_missing_device_is_not_blank(workdir: Path, runner: Any) -> None:
    with pytest.raises(DeviceUnclear, match="No such file"):
        Filesystems(runner).format(workdir / "absent", "ext4")
    assert runner.started == []


def test_a_device_that_answers_with_errors_is_not_blank(
    make_disk: Callable[..., Any], filesystems: Filesystems, runner: Any
) -> None:
    disk = make_disk()
    # The device promises bytes that its file does not have: reading them is an I/O error.
    os.truncate(disk.file, 0)
    with pytest.raises(DeviceUnclear, match="Input/output error"):
        filesystems.content_of(disk.device)
    with pytest.raises(DeviceUnclear, match=disk.device):
        Filesystems(runner).format(disk.device, "ext4")
    assert "mkfs.ext4" not in runner.programs()


def test_a_device_that_fails_further_on_is_not_blank(disk: Any, filesystems: Filesystems) -> None:
    os.truncate(disk.file, 32 * MIB)
    assert filesystems.content_of(disk.device) == Blank()
    with pytest.raises(DeviceUnclear, match="Input/output error"):
        filesystems.prove_blank(disk.device)


def test_a_detached_loop_device_is_not_blank(filesystems: Filesystems, make_disk: Callable[..., Any]) -> None:
    disk = make_disk()
    subprocess.run(["losetup", "--detach", disk.device], check=True)
    with pytest.raises(DeviceUnclear):
        filesystems.prove_blank(disk.device)


def test_a_mounted_device_is_not_formatted_even_where_blkid_sees_nothing(disk: Any, staged: Path, runner: Any) -> None:
    runner.instead["blkid"] = lambda *_, **__: ProcessResult(exit_code=2, stdout="", stderr="")
    with pytest.raises(DeviceUnclear, match="in use"):
        Filesystems(runner).format(disk.device, "ext4")
    assert (staged / "lost+found").is_dir()


def test_a_reading_that_takes_too_long_is_no_proof(disk: Any, runner: Any) -> None:
    with pytest.raises(DeviceUnclear, match="took longer"):
        Filesystems(runner, blank_seconds=-1.0).format(disk.device, "ext4")
    assert "mkfs.ext4" not in runner.programs()


def test_extents_of_the_backend_are_read_and_the_edges_too(disk: Any, filesystems: Filesystems) -> None:
    disk.write(b"middle", at=30 * MIB + 5)
    assert filesystems.prove_blank(disk.device, []).size_bytes == 64 * MIB
    assert filesystems.prove_blank(disk.device, [(0, 8 * MIB), (40 * MIB, 24 * MIB)]).device == disk.device
    with pytest.raises(DeviceNotBlank, match=str(30 * MIB + 5)):
        filesystems.prove_blank(disk.device, [(28 * MIB, 4 * MIB)])
    disk.write(b"edge", at=64 * MIB - 700)
    with pytest.raises(DeviceNotBlank, match=str(64 * MIB - 700)):
        filesystems.prove_blank(disk.device, [])


def test_extents_beyond_the_device_are_of_another_device(disk: Any, filesystems: Filesystems) -> None:
    with pytest.raises(DeviceUnclear, match="not the device"):
        filesystems.prove_blank(disk.device, [(60 * MIB, 8 * MIB)])


def test_a_proof_is_good_for_its_device_only(make_disk: Callable[..., Any], runner: Any) -> None:
    proven, other = make_disk(), make_disk()
    proof = Filesystems(runner).prove_blank(proven.device, [])
    with pytest.raises(DeviceUnclear, match="not the device"):
        Filesystems(runner).format(other.device, "ext4", proof=proof)
    proven.write(b"\x53\xef", at=1080)
    with pytest.raises(DeviceNotBlank, match="ext2"):
        Filesystems(runner).format(proven.device, "ext4", proof=proof)
    assert "mkfs.ext4" not in runner.programs()


def test_an_own_mkfs_that_was_cut_off_is_begun_again_but_only_without_a_signature(
    disk: Any, filesystems: Filesystems
) -> None:
    disk.write(b"half an inode table", at=5 * MIB)
    filesystems.format(disk.device, "ext4", proof=filesystems.accept_unsigned(disk.device))
    with pytest.raises(DeviceNotBlank, match="ext4"):
        filesystems.accept_unsigned(disk.device)


def test_a_device_behind_fuse_is_proven_blank_and_its_data_is_seen(fuse_file: Any, filesystems: Filesystems) -> None:
    assert filesystems.prove_blank(fuse_file.path).size_bytes == 8 * MIB
    with fuse_file.path.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"data", 4 * MIB)
        os.fsync(file.fileno())
    with pytest.raises(DeviceNotBlank, match=str(4 * MIB)):
        filesystems.prove_blank(fuse_file.path)


def test_a_device_whose_daemon_died_is_not_blank(fuse_file: Any, filesystems: Filesystems) -> None:
    fuse_file.kill()
    with pytest.raises(DeviceUnclear, match="not connected"):
        filesystems.prove_blank(fuse_file.path)


def test_damage_that_can_be_repaired_is_repaired_and_the_rest_is_refused(disk: Any, filesystems: Filesystems) -> None:
    filesystems.format(disk.device, "ext4")
    subprocess.run(["debugfs", "-w", "-R", "ssv free_blocks_count 1", disk.device], check=True, capture_output=True)
    filesystems.check(disk.device, "ext4")
    subprocess.run(["debugfs", "-w", "-R", "sif <2> mode 0", disk.device], check=True, capture_output=True)
    subprocess.run(["debugfs", "-w", "-R", "ssv state 2", disk.device], check=True, capture_output=True)
    with pytest.raises(FilesystemDamaged, match="e2fsck"):
        filesystems.check(disk.device, "ext4")


def test_a_missing_program_is_named_with_its_package_before_the_device_is_touched(disk: Any, runner: Any) -> None:
    def none_is_there(names: Any) -> None:
        raise LookupError(*names)

    with pytest.raises(LookupError) as missing:
        Filesystems(runner, require=none_is_there).format(disk.device, "xfs")
    assert "mkfs.xfs" in missing.value.args
    assert runner.started == []


def _superblock(disk: Any) -> str:
    return run(["dumpe2fs", "-h", disk.device], timeout=10).stdout
