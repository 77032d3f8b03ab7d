"""What becomes of a daemon's log; that rbd-nbd writes one is in tests/kernel."""

import gzip
import logging
import os
import threading
from pathlib import Path

import pytest

from csi_host_rbd.attach.nbd_logs import COMPRESSING, can_be_written, log_file, put_away

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


def compressed() -> None:
    """Return when nothing is being compressed any more."""
    for thread in threading.enumerate():
        if thread.name.startswith(COMPRESSING):
            thread.join(20)
            assert not thread.is_alive()


def test_a_log_is_compressed_in_place_of_an_older_one(tmp_path: Path) -> None:
    path, packed = tmp_path / "one.log", tmp_path / "one.log.gz"
    packed.write_bytes(b"of an earlier day")
    path.write_bytes(TEXT)
    for _ in range(2):
        put_away(path, "compress")
        compressed()
    assert list(tmp_path.iterdir()) == [packed]
    assert gzip.decompress(packed.read_bytes()) == TEXT
    assert packed.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("has_newer", [False, True])
def test_what_a_killed_process_left_is_compressed_the_next_time_or_replaced(tmp_path: Path, *, has_newer: bool) -> None:
    path, another = tmp_path / "[one].log", tmp_path / "o.log.1700000000000000000.aside"
    (tmp_path / "[one].log.gz.unfinished").write_bytes(b"half")
    (tmp_path / "[one].log.1700000000000000000.aside").write_bytes(b"older")
    another.write_bytes(b"of another volume")
    if has_newer:
        path.write_bytes(b"newer")
    put_away(path, "compress")
    compressed()
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "[one].log.gz", another])
    assert gzip.decompress((tmp_path / "[one].log.gz").read_bytes()) == (b"newer" if has_newer else b"older")


def test_nobody_waits_for_a_log_to_be_compressed_and_the_next_daemon_has_one_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "one.log"
    # Whoever reads it waits.
    os.mkfifo(path)
    put_away(path, "compress")
    (aside,) = tmp_path.glob("one.log.*.aside")
    # Returns when it is being read.
    with aside.open("wb") as writer:
        path.write_bytes(b"the next daemon's")
        put_away(path, "compress")
        path.write_bytes(b"the one after that")
        writer.write(TEXT)
    compressed()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["one.log", "one.log.gz"]
    assert gzip.decompress((tmp_path / "one.log.gz").read_bytes()) == b"the next daemon's"
    assert path.read_bytes() == b"the one after that"


def test_a_log_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "one.log"
    path.write_bytes(TEXT)
    put_away(path, "preserve")
    assert path.read_bytes() == TEXT


def test_what_cannot_be_done_is_said_and_keeps_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "one.log"
    path.write_bytes(TEXT)
    (tmp_path / "one.log.gz.unfinished").mkdir()
    with caplog.at_level(logging.ERROR):
        put_away(path, "shred")
        assert path.read_bytes() == TEXT
        put_away(path, "compress")
        compressed()
    (aside,) = tmp_path.glob("*.aside")
    assert aside.read_bytes() == TEXT
    unknown, failed = caplog.messages
    assert (str(path) in unknown, "'shred'" in unknown) == (True, True)
    assert failed == f"{path}: to compress it failed: Is a directory"
