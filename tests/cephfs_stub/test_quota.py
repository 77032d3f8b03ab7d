import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from csi_host.errors import NotFound
from csi_host.node.mounts import Mount, parse_mounts
from csi_host.node.stats import Usage, VolumeStats
from csi_host.plugins import Plugins
from csi_host_cephfs_stub.quota import QuotaStats, read_attribute

SHARED = VolumeStats(
    bytes=Usage(total=1000, used=400, available=600), inodes=Usage(total=100, used=40, available=60), message="shared"
)


def mount_of(fs_type: str) -> Callable[[Path], Mount | None]:
    (mount,) = parse_mounts(f"36 1 0:40 /volumes/v1 /vol rw - {fs_type} ceph-fuse rw\n".encode())
    return lambda _path: mount


def stats_with(attributes: dict[str, int], *, fs_type: str = "ceph") -> QuotaStats:
    return QuotaStats(
        mount_at=mount_of(fs_type),
        read_attribute=lambda _path, name: attributes.get(name, 0),
        shared_stats=lambda _path: SHARED,
    )


@pytest.mark.parametrize("fs_type", ["ceph", "fuse.ceph", "fuse.ceph-fuse"])
def test_a_quota_in_bytes_is_the_size_of_the_volume(fs_type: str) -> None:
    stats = stats_with({"ceph.quota.max_bytes": 500, "ceph.dir.rbytes": 120}, fs_type=fs_type)(Path("/vol"))
    assert stats is not None
    assert stats.bytes == Usage(total=500, used=120, available=380)
    assert stats.inodes == SHARED.inodes


def test_a_quota_in_files_counts_files_and_directories() -> None:
    stats = stats_with({"ceph.quota.max_files": 50, "ceph.dir.rentries": 7})(Path("/vol"))
    assert stats is not None
    assert stats.inodes == Usage(total=50, used=7, available=43)
    assert stats.bytes == SHARED.bytes


def test_a_volume_over_its_quota_has_nothing_available_and_not_less() -> None:
    stats = stats_with({"ceph.quota.max_bytes": 500, "ceph.dir.rbytes": 700})(Path("/vol"))
    assert stats is not None
    assert stats.bytes == Usage(total=500, used=700, available=0)


def test_the_condition_is_the_one_of_the_shared_answer() -> None:
    stats = stats_with({"ceph.quota.max_bytes": 500})(Path("/vol"))
    assert stats is not None
    assert stats.message == "shared"


def test_without_a_quota_the_shared_answer_is_left_to_be_given() -> None:
    assert stats_with({"ceph.dir.rbytes": 120, "ceph.dir.rentries": 7})(Path("/vol")) is None


def test_another_filesystem_is_never_asked_for_its_attributes() -> None:
    def must_not_be_asked(_path: Path, name: str) -> int:
        raise AssertionError(name)

    ask = QuotaStats(mount_at=mount_of("ext4"), read_attribute=must_not_be_asked, shared_stats=lambda _path: SHARED)
    assert ask(Path("/vol")) is None


def test_a_path_that_is_no_mount_is_left_to_the_shared_answer(tmp_path: Path) -> None:
    assert QuotaStats()(tmp_path) is None


def test_a_mount_that_lost_its_server_is_left_to_the_shared_answer_which_names_the_condition() -> None:
    def not_connected(_path: Path, _name: str) -> int:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    ask = QuotaStats(mount_at=mount_of("fuse.ceph-fuse"), read_attribute=not_connected, shared_stats=lambda _: SHARED)
    assert ask(Path("/vol")) is None


def test_a_volume_that_went_away_in_between_is_told_by_the_shared_answer() -> None:
    def gone(_path: Path) -> VolumeStats:
        raise NotFound("volume_path: no volume is mounted at /vol")

    ask = QuotaStats(mount_at=mount_of("ceph"), read_attribute=lambda _path, _name: 9, shared_stats=gone)
    with pytest.raises(NotFound, match="no volume is mounted"):
        ask(Path("/vol"))


def test_an_attribute_that_is_not_there_counts_as_nought(tmp_path: Path) -> None:
    assert read_attribute(tmp_path, "user.csi-host-absent") == 0


def test_an_attribute_of_a_path_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_attribute(tmp_path / "absent", "user.any")


@pytest.fixture
def volume(cephfs_root: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Path, Path]]:
    """A directory of the filesystem and the place where it is published by a bind mount, as kubelet has it."""
    directory = cephfs_root / request.node.name
    directory.mkdir()
    published = tmp_path / "published"
    published.mkdir()
    subprocess.run(["mount", "--bind", str(directory), str(published)], check=True, timeout=30)
    yield directory, published
    subprocess.run(["umount", "--lazy", str(published)], check=True, timeout=30)


@pytest.mark.ceph
@pytest.mark.root
def test_a_real_quota_is_what_the_volume_is_measured_by(
    volume: tuple[Path, Path], eventually: Callable[[Callable[[], bool], str], None]
) -> None:
    directory, published = volume
    os.setxattr(directory, "ceph.quota.max_bytes", str(100 * 2**20).encode())
    os.setxattr(directory, "ceph.quota.max_files", b"50")
    (directory / "data").write_bytes(bytes(3 * 2**20))
    answers: list[VolumeStats] = []

    def is_counted() -> bool:
        answer = QuotaStats()(published)
        assert answer is not None
        answers.append(answer)
        return answer.bytes == Usage(total=100 * 2**20, used=3 * 2**20, available=97 * 2**20)

    eventually(is_counted, "three MiB are used of a hundred")
    # The directory itself counts, as it does in the MDS when it enforces max_files.
    assert answers[-1].inodes == Usage(total=50, used=2, available=48)
    assert not answers[-1].abnormal
    assert Plugins().volume_stats(published) == answers[-1]


@pytest.mark.ceph
@pytest.mark.root
def test_a_real_directory_without_a_quota_is_left_to_the_shared_answer(volume: tuple[Path, Path]) -> None:
    _, published = volume
    assert QuotaStats()(published) is None
