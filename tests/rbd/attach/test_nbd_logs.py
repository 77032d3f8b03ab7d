"""What becomes of a daemon's log; that rbd-nbd writes one is in tests/kernel."""

import gzip
import logging
from pathlib import Path

import pytest

from csi_host_rbd.attach.nbd_logs import can_be_written, log_file, put_away

TEXT = b"2026-01-01 something happened\n" * 1000


def test_a_log_is_called_as_ceph_csi_calls_it() -> None:
    assert log_file("/var/log/ceph", "0001-x") == Path("/var/log/ceph/rbd-nbd-0001-x.log")


def test_a_log_goes_on_where_an_earlier_daemons_ended(tmp_path: Path) -> None:
    path = log_file(str(tmp_path / "logs/of/ceph"), "v1")
    assert can_be_written(path)
    path.write_bytes(TEXT)
    assert can_be_written(path)
    assert path.read_bytes() == TEXT


@pytest.mark.parametrize("directory", ["logs", "/proc/self/nowhere", "/tmp/../etc", "/dev/null"])
def test_a_place_for_no_log_is_said_and_refuses_nothing(directory: str, caplog: pytest.LogCaptureFixture) -> None:
    assert not can_be_written(log_file(directory, "v1"))
    assert "rbd-nbd-v1.log" in caplog.text


def test_a_link_to_another_file_is_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    log_file(str(tmp_path), "v1").symlink_to(other)
    assert not can_be_written(log_file(str(tmp_path), "v1"))
    assert not other.exists()


def test_a_volume_with_too_long_an_id_has_no_log(tmp_path: Path) -> None:
    assert not can_be_written(log_file(str(tmp_path), "v" * 255))


@pytest.mark.parametrize("strategy", ["remove", ""])
def test_a_log_is_removed_once(tmp_path: Path, strategy: str) -> None:
    path = tmp_path / "one.log"
    path.write_bytes(TEXT)
    put_away(path, strategy)
    put_away(path, strategy)
    assert list(tmp_path.iterdir()) == []


def test_a_log_is_compressed_in_place_of_an_older_one(tmp_path: Path) -> None:
    path, packed = tmp_path / "one.log", tmp_path / "one.log.gz"
    packed.write_bytes(b"of an earlier day")
    # Killed while it was compressed before.
    (tmp_path / "one.log.gz.unfinished").write_bytes(b"half")
    path.write_bytes(TEXT)
    put_away(path, "compress")
    put_away(path, "compress")
    assert list(tmp_path.iterdir()) == [packed]
    assert gzip.decompress(packed.read_bytes()) == TEXT


def test_a_log_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "one.log"
    path.write_bytes(TEXT)
    put_away(path, "preserve")
    assert path.read_bytes() == TEXT


@pytest.mark.parametrize("strategy", ["shred", "compress"])
def test_what_cannot_be_done_is_said_and_keeps_the_log(
    tmp_path: Path, strategy: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "one.log"
    path.write_bytes(TEXT)
    (tmp_path / "one.log.gz.unfinished").mkdir()
    with caplog.at_level(logging.ERROR):
        put_away(path, strategy)
    assert path.read_bytes() == TEXT
    assert f"{path}" in caplog.text
    assert strategy in caplog.text
