"""csi-host killed at every step of staging and unstaging: the next call goes on from there, and no byte is lost."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from csi_host.access import AccessMode, VolumeAccess
from csi_host.process import run
from csi_host_rbd import node
from csi_host_rbd.attach.qemu import QemuAttacher
from csi_host_rbd.attach.registry import Attachers
from csi_host_rbd.node.devices import Devices
from csi_host_rbd.node.image import NodeImage
from csi_host_rbd.node.staging import Staging
from csi_host_rbd.node.volumes import NodeVolumes
from csi_host_rbd.testing.kills import killed_at
from csi_host_rbd.testing.machine import Machine
from csi_host_rbd.testing.node_kit import MakeNodeImage

pytestmark = [
    pytest.mark.ceph,
    pytest.mark.root,
    # Who is killed closes nothing; here the garbage collector does it in the kernel's stead, and says so.
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]

MIB = 1024**2
MakeImage = Callable[[], NodeImage]
ACCESS = VolumeAccess(mode=AccessMode.SINGLE_NODE_WRITER, is_block=False, fs_type="ext4")
# The attach package has a test of its own, which kills at every step of it.
STEPS_OF = [Path(directory) for directory in node.__path__]


@pytest.fixture
def volumes(directory: Path) -> NodeVolumes:
    attachers = Attachers([QemuAttacher(run=run, directory=directory / "qemu")], default="qemu")
    return NodeVolumes(run=run, devices=Devices(attachers))


@pytest.fixture
def make_image(make_node_image: MakeNodeImage) -> MakeImage:
    return lambda: make_node_image(32 * MIB)


def stage(volumes: NodeVolumes, place: Staging, image: NodeImage) -> None:
    place.directory.mkdir(exist_ok=True)
    if not volumes.is_staged(place, ACCESS):
        volumes.stage(place, ACCESS, image)


def test_wherever_staging_is_cut_off_the_next_call_completes_it(
    volumes: NodeVolumes, make_image: MakeImage, directory: Path
) -> None:
    for step in itertools.count(1):
        image = make_image()
        place = Staging.of(str(directory / str(step)), image.name)
        with killed_at(step, STEPS_OF) as happened:
            stage(volumes, place, image)
        stage(volumes, place, image)
        (place.target / "file").write_text("data")
        volumes.unstage(place)
        stage(volumes, place, image)
        assert (place.target / "file").read_text() == "data"
        volumes.unstage(place)
        assert list(place.directory.iterdir()) == []
        if not happened:
            break
    Machine(directory=directory).assert_clean()
    # Fewer steps than these, and the killing has not worked.
    assert step > 20


def test_wherever_staging_is_cut_off_it_can_be_unstaged(
    volumes: NodeVolumes, make_image: MakeImage, directory: Path
) -> None:
    for step in itertools.count(1):
        image = make_image()
        place = Staging.of(str(directory / str(step)), image.name)
        with killed_at(step, STEPS_OF) as happened:
            stage(volumes, place, image)
        volumes.unstage(place)
        assert list(place.directory.iterdir()) == []
        Machine(directory=directory).assert_clean()
        if not happened:
            break
    assert step > 20


def test_wherever_unstaging_is_cut_off_the_next_call_completes_it(
    volumes: NodeVolumes, make_image: MakeImage, directory: Path
) -> None:
    image = make_image()
    place = Staging.of(str(directory / "staging"), image.name)
    for step in itertools.count(1):
        stage(volumes, place, image)
        (place.target / f"file-{step}").write_text("data")
        with killed_at(step, STEPS_OF) as happened:
            volumes.unstage(place)
        volumes.unstage(place)
        assert list(place.directory.iterdir()) == []
        Machine(directory=directory).assert_clean()
        if not happened:
            break
    stage(volumes, place, image)
    assert {path.name for path in place.target.glob("file-*")} == {f"file-{each}" for each in range(1, step + 1)}
    volumes.unstage(place)
