import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from csi_host.kms import Passphrase
from csi_host.process import run
from csi_host_rbd.encryption.luks import Luks
from csi_host_rbd.encryption.luks_header import LuksHeader, read_header
from csi_host_rbd.testing.fast_luks import fast_luks

MIB = 1024**2
PASSPHRASE = Passphrase("correct horse")
# Offsets of the second copy of a header with cryptsetup's own sizes.
SECOND = 0x4000


@pytest.fixture(scope="module")
def formatted(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("luks") / "image"
    path.touch()
    with path.open("r+b") as file:
        file.truncate(32 * MIB)
    Luks(fast_luks(run)).format(str(path), PASSPHRASE)
    return path.read_bytes()


def header_of(content: bytes | bytearray) -> LuksHeader | None:
    return read_header(lambda offset, length: bytes(content[offset : offset + length]))


def test_a_header_tells_where_the_data_begins_and_that_it_has_a_passphrase(formatted: bytes) -> None:
    header = header_of(formatted)
    assert header is not None
    assert (header.version, header.has_passphrases, header.data_offset) == (2, True, 16 * MIB)
    assert len(header.uuid) == 36


def test_the_header_has_the_parameters_of_ceph_csi(formatted: bytes, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(formatted)
    shown = run(["cryptsetup", "luksDump", str(path)], timeout=30).stdout
    (memory,) = [line.split()[1] for line in shown.splitlines() if "Memory:" in line]
    # cryptsetup takes less where a derivation gets slow.
    assert int(memory) <= 32768
    assert "AF hash:    sha256" in shown
    assert "cipher: aes-xts-plain64" in shown


@pytest.mark.parametrize("damaged", [0, 72, 200, 4200])
def test_of_a_damaged_first_copy_the_second_is_taken(formatted: bytes, damaged: int) -> None:
    content = bytearray(formatted)
    content[damaged] ^= 0xFF
    assert header_of(content) == header_of(formatted)
    content[SECOND + damaged] ^= 0xFF
    assert header_of(content) is None


def test_a_header_whose_making_was_cut_off_has_no_passphrase(formatted: bytes, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(formatted)
    run(["cryptsetup", "luksErase", "--batch-mode", str(path)], timeout=30)
    header = header_of(path.read_bytes())
    assert header is not None
    assert not header.has_passphrases


def test_the_first_version_is_recognized(tmp_path: Path) -> None:
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.truncate(8 * MIB)
    argv = ["cryptsetup", "-q", "luksFormat", "--type", "luks1", "--pbkdf-force-iterations", "1000", str(path), "-"]
    subprocess.run(argv, input=b"secret", check=True, timeout=60)
    header = header_of(path.read_bytes())
    assert header is not None
    assert (header.version, header.has_passphrases, header.data_offset) == (1, True, 2 * MIB)


@pytest.mark.parametrize(
    "make",
    [
        lambda _: b"",
        lambda _: bytes(MIB),
        lambda _: b"LUKS\xba\xbe\0\2" + bytes(MIB),
        lambda whole: whole[:4096],
        lambda whole: whole[:8192],
        lambda whole: whole[:6] + b"\0\3" + whole[8:SECOND],
    ],
)
def test_what_is_no_whole_header_is_none(formatted: bytes, make: Callable[[bytes], bytes]) -> None:
    assert header_of(make(formatted)) is None
