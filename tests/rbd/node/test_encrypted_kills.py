"""csi-host killed at every step of an encrypted volume's first use: the next call goes on, and no byte is lost."""

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from csi_host.access import AccessMode, VolumeAccess
from csi_host.kms import KmsRequest
from csi_host.process import run
from csi_host_rbd.attach.qemu import QemuAttacher
from csi_host_rbd.attach.registry import Attachers
from csi_host_rbd.encryption import first_use, luks
from csi_host_rbd.encryption.first_use import LUKS_MARK
from csi_host_rbd.encryption.keys import Keys
from csi_host_rbd.encryption.secret_kms import SecretKms
from csi_host_rbd.encryption.state import STATE
from csi_host_rbd.node import encrypted
from csi_host_rbd.node.devices import Devices
from csi_host_rbd.node.image import NodeImage
from csi_host_rbd.node.staging import Staging
from csi_host_rbd.node.volumes import NodeVolumes
from csi_host_rbd.testing.fast_luks import fast_luks
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
ACCESS = VolumeAccess(mode=AccessMode.SINGLE_NODE_WRITER, is_block=True, fs_type="")
# The attacher's own steps are tests/rbd/attach's, and those of the node test_kills.py's.
STEPS_OF = [Path(str(module.__file__)) for module in (encrypted, first_use, luks)]


@pytest.fixture
def volumes(directory: Path) -> NodeVolumes:
    attachers = Attachers([QemuAttacher(run=run, directory=directory / "qemu")], default="qemu")
    return NodeVolumes(run=run, devices=Devices(attachers, run=fast_luks(run)))


@pytest.fixture
def make_image(make_node_image: MakeNodeImage) -> MakeImage:
    keys = Keys(SecretKms(KmsRequest(kms_id="default", secrets={"encryptionPassphrase": "secret"})))

    def make() -> NodeImage:
        image = make_node_image(20 * MIB, keys)
        image.write_metadata(STATE, "encryptionPrepared")
        return image

    return make


def stage(volumes: NodeVolumes, place: Staging, image: NodeImage) -> None:
    place.directory.mkdir(exist_ok=True)
    if not volumes.is_staged(place, ACCESS):
        volumes.stage(place, ACCESS, image)


def write(place: Staging, data: bytes) -> None:
    with place.target.open("r+b", buffering=0) as file:
        file.write(data)
        os.fsync(file.fileno())


def test_wherever_the_first_use_is_cut_off_the_next_call_completes_it(
    volumes: NodeVolumes, make_image: MakeImage, directory: Path
) -> None:
    marks = set()
    for step in itertools.count(1):
        image = make_image()
        place = Staging.of(str(directory / str(step)), image.name)
        with killed_at(step, STEPS_OF) as happened:
            stage(volumes, place, image)
        metadata = image.metadata()
        marks.add((metadata[STATE], metadata.get(LUKS_MARK)))
        stage(volumes, place, image)
        metadata = image.metadata()
        assert (metadata[STATE], LUKS_MARK in metadata) == ("encrypted", False)
        data = os.urandom(4096)
        write(place, data)
        volumes.unstage(place)
        assert list(place.directory.iterdir()) == []
        Machine(directory=directory).assert_clean()
        if step % 8 == 0:
            stage(volumes, place, image)
            assert place.target.read_bytes()[:4096] == data
            volumes.unstage(place)
        if not happened:
            break
    assert step > 12
    # The kills hit each of the stretches between two durable steps.
    assert marks >= {
        ("encryptionPrepared", None),
        ("encryptionPrepared", "formatting"),
        ("encrypted", None),
    }
