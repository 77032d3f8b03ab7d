"""An ext is checked and grown before it is mounted only where nobody, in whatever container, has it mounted."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from csi_host.process import ProcessError, ProcessResult, run
from csi_host.testing.namespaces import other_mount_namespace
from csi_host_common_node.block import LoopDevices
from csi_host_common_node.filesystem import BlankProof, Filesystems
from csi_host_common_node.resize import Grower
from csi_host_rbd.node.growing import make_ready

pytestmark = pytest.mark.root

MIB = 1024**2


class Marks:
    """The mark of an image, and all that it has been."""

    def __init__(self) -> None:
        self.written = ["formatted ext4"]

    def read_mark(self) -> str | None:
        return self.written[-1]

    def write_mark(self, text: str) -> None:
        self.written.append(text)

    def prove_blank(self, filesystems: Filesystems, device: str) -> BlankProof:
        return filesystems.prove_blank(device)


class Programs:
    """The real runner; keeps the names of what was started. e2fsck can be blind."""

    def __init__(self, *, blind: bool = False) -> None:
        self.started: set[str] = set()
        self._blind = blind

    def __call__(self, argv: Sequence[str], **how: Any) -> ProcessResult:
        self.started.add(argv[0])
        if self._blind and argv[0] == "e2fsck":
            raise ProcessError(argv, "exit code 8: unsupported feature(s)", exit_code=8)
        return run(argv, **how)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[str]:
    """Lend a loop device of 64 MiB with an ext4 of half of it."""
    file, loops = tmp_path / "disk", LoopDevices(run)
    file.touch()
    os.truncate(file, 32 * MIB)
    run(["mkfs.ext4", "-q", str(file)], timeout=60)
    os.truncate(file, 64 * MIB)
    made = loops.attach(file)
    yield made
    loops.detach(made)


def ready(device: str, programs: Programs) -> Marks:
    marks = Marks()
    make_ready(Filesystems(programs), Grower(programs, capabilities=lambda: 0), device, "ext4", marks)
    return marks


def test_what_is_mounted_nowhere_is_checked_and_grown(device: str) -> None:
    programs = Programs()
    assert ready(device, programs).written[1:] == ["growing ext4", "formatted ext4"]
    assert {"e2fsck", "resize2fs"} <= programs.started


def test_what_another_container_has_mounted_is_left_to_the_kernel(device: str, tmp_path: Path) -> None:
    programs, place = Programs(), tmp_path / "mounted"
    place.mkdir()
    with other_mount_namespace() as run_there:
        run_there("mount", device, str(place))
        assert ready(device, programs).written == ["formatted ext4"]
    assert not {"e2fsck", "resize2fs"} & programs.started


def test_what_e2fsck_could_not_look_at_is_not_grown_unmounted(device: str) -> None:
    programs = Programs(blind=True)
    assert ready(device, programs).written == ["formatted ext4"]
    assert "resize2fs" not in programs.started
