import itertools
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from csi_host.kms import Passphrase
from csi_host.node.devices import size_bytes
from csi_host.process import run
from csi_host_rbd.attach import qemu
from csi_host_rbd.attach.attacher import Attachment, AttachRequest, OpensLuks
from csi_host_rbd.attach.qemu import QemuAttacher
from csi_host_rbd.attach.storage_daemon import ImageNotOpened
from csi_host_rbd.encryption.luks import Luks
from csi_host_rbd.testing.device_bytes import read_from, write_to
from csi_host_rbd.testing.fast_luks import fast_luks
from csi_host_rbd.testing.images import Images
from csi_host_rbd.testing.kills import killed_at
from csi_host_rbd.testing.machine import Machine

pytestmark = [
    pytest.mark.ceph,
    pytest.mark.root,
    # Who is killed closes nothing; here the garbage collector does it in the kernel's stead, and says so.
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]

MIB = 1024**2
HEADER = 16 * MIB
PATTERN = os.urandom(MIB)
PASSPHRASE = Passphrase("correct horse\n")
LUKS = Luks(fast_luks(run))

RequestFor = Callable[..., AttachRequest]
Attach = Callable[..., Attachment]


@pytest.fixture(scope="module")
def header(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A LUKS header; making one takes seconds."""
    path = tmp_path_factory.mktemp("luks") / "image"
    path.write_bytes(bytes(HEADER + MIB))
    LUKS.format(str(path), PASSPHRASE)
    return path.read_bytes()[:HEADER]


@pytest.fixture
def encrypted(images: Images, header: bytes) -> str:
    """An image of 64 MiB that has a LUKS header."""
    name = images.make(64 * MIB)
    with images.opened(name, read_only=False) as image:
        image.write(header, 0)
    return name


def test_a_header_made_through_the_bare_device_is_opened(
    attacher: QemuAttacher, attached: Attach, images: Images, request_for: RequestFor
) -> None:
    name = images.make(64 * MIB)
    with attacher.bare(request_for(name)) as device:
        LUKS.format(device, PASSPHRASE)
    assert size_bytes(attached(name, passphrase=PASSPHRASE).device) == 64 * MIB - HEADER


def test_what_is_encrypted_is_shown_and_the_image_has_no_plain_byte_of_it(
    attached: Attach, images: Images, encrypted: str
) -> None:
    device = attached(encrypted, passphrase=PASSPHRASE).device
    assert size_bytes(device) == 64 * MIB - HEADER
    write_to(device, 5 * MIB, PATTERN)
    assert read_from(device, 5 * MIB, MIB) == PATTERN
    with images.opened(encrypted) as image:
        content = bytes(image.read(0, image.size()))
    assert content.startswith(b"LUKS\xba\xbe\0\2")
    assert content[HEADER + 5 * MIB : HEADER + 6 * MIB] not in {PATTERN, bytes(MIB)}
    assert PATTERN[:64] not in content


def test_it_grows_while_it_is_used_and_the_image_keeps_its_size(
    attacher: QemuAttacher, attached: Attach, images: Images, request_for: RequestFor, encrypted: str
) -> None:
    device = attached(encrypted, passphrase=PASSPHRASE).device
    write_to(device, 48 * MIB - MIB, PATTERN)
    spec = request_for(encrypted).spec
    for size in (64 * MIB, 65 * MIB, 96 * MIB):
        images.resize(encrypted, size)
        for _ in range(2):
            # A second time changes nothing: librbd must never be asked for the size without the header.
            assert attacher.grow(spec) == size
            assert size_bytes(device) == size - HEADER
            assert images.size(encrypted) == size
    write_to(device, 80 * MIB - MIB, PATTERN)
    attacher.detach(spec)
    device = attached(encrypted, passphrase=PASSPHRASE).device
    assert read_from(device, 48 * MIB - MIB, MIB) == read_from(device, 80 * MIB - MIB, MIB) == PATTERN


def test_a_wrong_passphrase_opens_nothing_and_leaves_nothing(
    attacher: QemuAttacher, request_for: RequestFor, encrypted: str, machine: Machine
) -> None:
    with pytest.raises(ImageNotOpened):
        attacher.attach(request_for(encrypted, passphrase=Passphrase("wrong")))
    machine.assert_clean()


def test_an_image_without_a_header_is_not_opened_and_not_changed(
    attacher: QemuAttacher, images: Images, request_for: RequestFor, machine: Machine
) -> None:
    name = images.make(64 * MIB)
    with pytest.raises(ImageNotOpened):
        attacher.attach(request_for(name, passphrase=PASSPHRASE))
    assert images.read(name, 0, 64 * MIB) == bytes(64 * MIB)
    machine.assert_clean()


def test_a_plain_device_does_not_pass_for_an_opened_one(attached: Attach, encrypted: str) -> None:
    assert size_bytes(attached(encrypted).device) == 64 * MIB
    assert size_bytes(attached(encrypted, passphrase=PASSPHRASE).device) == 64 * MIB - HEADER
    assert size_bytes(attached(encrypted).device) == 64 * MIB


def test_the_header_can_be_changed_beside_the_opened_device(
    attacher: QemuAttacher, attached: Attach, request_for: RequestFor, encrypted: str, machine: Machine
) -> None:
    assert isinstance(attacher, OpensLuks)
    other = Passphrase("battery staple")
    device = attached(encrypted, passphrase=PASSPHRASE).device
    write_to(device, 0, PATTERN)
    with attacher.bare(request_for(encrypted)) as bare:
        assert bare != device
        LUKS.add(bare, 1, other, authorized_by=PASSPHRASE)
        LUKS.remove(bare, 0)
    write_to(device, MIB, PATTERN)
    assert len(machine.daemons()) == 1
    attacher.detach(request_for(encrypted).spec)
    machine.assert_clean()
    assert read_from(attached(encrypted, passphrase=other).device, 0, 2 * MIB) == 2 * PATTERN


def test_the_passphrase_is_on_no_command_line_and_in_no_file(
    attached: Attach, encrypted: str, machine: Machine, directory: Path
) -> None:
    attached(encrypted, passphrase=PASSPHRASE)
    (pid,) = machine.daemons()
    secret = PASSPHRASE.reveal().strip().encode()
    shown = [Path(f"/proc/{pid}/{name}").read_bytes() for name in ("cmdline", "environ")]
    shown += [file.read_bytes() for file in directory.glob("qemu/*/*") if file.is_file() and file.name != "image"]
    assert len(shown) > 3
    assert not any(secret in text for text in shown)


def test_wherever_a_bare_device_is_cut_off_the_next_one_or_a_detach_takes_it_away(
    attacher: QemuAttacher, images: Images, request_for: RequestFor, machine: Machine
) -> None:
    request = request_for(images.make(64 * MIB))
    # The attacher's own steps; those below are test_qemu_failures.py's.
    for step in itertools.count(1):
        with killed_at(step, [Path(qemu.__file__)]) as happened, attacher.bare(request):
            pass
        if step % 2:
            with attacher.bare(request) as device:
                assert size_bytes(device) == 64 * MIB
        else:
            attacher.detach(request.spec)
        machine.assert_clean()
        if not happened:
            break
    assert step > 6
