"""The node plugin's container ends, and with it the qemu mounter's daemons and mounts: what stays is found again."""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from csi_host.access import AccessMode, VolumeAccess
from csi_host.errors import CsiError
from csi_host.node.mounts import mount_at
from csi_host.process import ProcessError, ProcessResult, Runner, run
from csi_host.testing.namespaces import RunThere, other_mount_namespace
from csi_host_common_node.block import LoopDevices, backing_file
from csi_host_rbd.attach.qemu import QemuAttacher
from csi_host_rbd.attach.registry import Attachers
from csi_host_rbd.node.devices import Devices
from csi_host_rbd.node.image import NodeImage
from csi_host_rbd.node.staged import device_of
from csi_host_rbd.node.staging import Staging
from csi_host_rbd.node.volumes import NodeVolumes
from csi_host_rbd.testing.machine import Machine
from csi_host_rbd.testing.node_kit import MakeNodeImage

pytestmark = [pytest.mark.ceph, pytest.mark.root, pytest.mark.usefixtures("short_watches")]

MIB = 1024**2
FILESYSTEM = VolumeAccess(mode=AccessMode.SINGLE_NODE_WRITER, is_block=False, fs_type="ext4")
BLOCK = VolumeAccess(mode=AccessMode.SINGLE_NODE_WRITER, is_block=True, fs_type="")


@dataclass(frozen=True, kw_only=True)
class Loop:
    """A loop device with the file it was attached to then: its name may be somebody else's a moment after."""

    device: str
    attached: str

    @classmethod
    def now(cls, device: str) -> "Loop":
        return cls(device=device, attached=_sequence(device))

    def is_there(self) -> bool:
        return backing_file(self.device) is not None and _sequence(self.device) == self.attached

    def detach(self) -> None:
        if self.is_there():
            LoopDevices(run).detach(self.device)


def _sequence(device: str) -> str:
    # Counted up with each file that any loop device is attached to.
    return Path("/sys/block", Path(device).name, "diskseq").read_text().strip()


def volumes_of(directory: Path, runner: Runner = run) -> NodeVolumes:
    """Return what a csi-host that has just started knows."""
    attachers = Attachers([QemuAttacher(run=runner, directory=directory / "qemu")], default="qemu")
    return NodeVolumes(run=run, devices=Devices(attachers))


def inside(run_there: RunThere) -> Runner:
    """Run the qemu mounter's programs in another container; what is mounted for pods is seen by all."""

    def run_some_there(argv: Sequence[str], **how: Any) -> ProcessResult:
        if argv[0] not in {"qemu-storage-daemon", "losetup"}:
            return run(argv, **how)
        return ProcessResult(exit_code=0, stdout=run_there(*argv), stderr="")

    return run_some_there


@pytest.fixture
def image(make_node_image: MakeNodeImage) -> NodeImage:
    return make_node_image(32 * MIB)


@pytest.fixture
def orphan(directory: Path, image: NodeImage) -> Iterator[Callable[[VolumeAccess], tuple[Staging, Loop]]]:
    """Return a function that stages the image in a container which ends then: the mount is there, all else is gone."""
    place = Staging.of(str(directory / "globalmount"), image.name)
    place.directory.mkdir()
    loops: list[Loop] = []

    def stage(access: VolumeAccess) -> tuple[Staging, Loop]:
        with other_mount_namespace() as run_there:
            volumes_of(directory, inside(run_there)).stage(place, access, image)
            mount = place.mount()
            assert mount is not None
            loops.append(Loop.now(device_of(mount)))
            if not access.is_block:
                (place.target / "file").write_text("data")
                run(["sync", "--file-system", str(place.target)], timeout=60)
            Machine(directory=directory).kill_daemon()
        shutil.rmtree(directory / "qemu")
        assert loops[0].is_there()
        assert str(directory) not in str(backing_file(loops[0].device))
        return place, loops[0]

    yield stage
    if place.mount() is not None:
        run(["umount", str(place.target)], timeout=60)
    for loop in loops:
        with suppress(CsiError):
            loop.detach()


@pytest.mark.parametrize("access", [FILESYSTEM, BLOCK])
def test_unstaging_takes_the_loop_device_away(
    directory: Path, orphan: Callable[[VolumeAccess], tuple[Staging, Loop]], access: VolumeAccess
) -> None:
    place, orphaned = orphan(access)
    volumes_of(directory).unstage(place)
    assert not orphaned.is_there()
    assert list(place.directory.iterdir()) == []


def test_unstaging_that_fails_at_the_loop_device_is_completed_by_the_next_call(
    directory: Path, orphan: Callable[[VolumeAccess], tuple[Staging, Loop]]
) -> None:
    place, orphaned = orphan(FILESYSTEM)

    def fails_to_detach(argv: Sequence[str], **how: Any) -> ProcessResult:
        if "--detach" in argv:
            raise ProcessError(argv, "no such luck", exit_code=1)
        return run(argv, **how)

    with pytest.raises(ProcessError, match="no such luck"):
        volumes_of(directory, fails_to_detach).unstage(place)
    assert place.mount() is None
    assert orphaned.is_there()
    volumes_of(directory).unstage(place)
    assert not orphaned.is_there()
    assert list(place.directory.iterdir()) == []


def test_staging_anew_leaves_one_device_and_the_data(
    directory: Path, orphan: Callable[[VolumeAccess], tuple[Staging, Loop]], image: NodeImage
) -> None:
    place, orphaned = orphan(FILESYSTEM)
    volumes = volumes_of(directory)
    assert not volumes.is_staged(place, FILESYSTEM)
    volumes.stage(place, FILESYSTEM, image)
    mount = mount_at(place.target)
    assert mount is not None
    (loop,) = Machine(directory=directory).loops()
    assert device_of(mount) == loop
    assert Loop.now(loop) == orphaned or not orphaned.is_there()
    assert (place.target / "file").read_text() == "data"
    volumes.unstage(place)
    Machine(directory=directory).assert_clean()


def test_a_mount_of_what_no_mounter_made_is_taken_away_and_its_device_stays(
    directory: Path, orphan: Callable[[VolumeAccess], tuple[Staging, Loop]]
) -> None:
    place, orphaned = orphan(FILESYSTEM)
    run(["umount", str(place.target)], timeout=60)
    orphaned.detach()
    file = directory / "somebody's"
    file.touch()
    os.truncate(file, 32 * MIB)
    run(["mkfs.ext4", "-q", str(file)], timeout=60)
    foreign = LoopDevices(run).attach(file)
    run(["mount", foreign, str(place.target)], timeout=60)
    volumes_of(directory).unstage(place)
    assert place.mount() is None
    assert backing_file(foreign) == str(file)
    LoopDevices(run).detach(foreign)
