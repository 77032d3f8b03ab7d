import os
from collections.abc import Callable
from pathlib import Path

import pytest

from csi_host.errors import FailedPrecondition
from csi_host.node.devices import size_bytes
from csi_host.process import run
from csi_host_rbd.attach.attacher import Attachment, AttachmentLost, AttachRequest, DeviceInUse
from csi_host_rbd.attach.qemu import QemuAttacher
from csi_host_rbd.testing.device_bytes import read_from, write_to
from csi_host_rbd.testing.images import Images
from csi_host_rbd.testing.machine import Machine

pytestmark = [pytest.mark.ceph, pytest.mark.root]

MIB = 1024**2

RequestFor = Callable[..., AttachRequest]
Attach = Callable[..., Attachment]
PATTERN = os.urandom(MIB)


def test_an_image_becomes_a_device_of_its_size_and_goes_away_without_a_trace(
    attacher: QemuAttacher, images: Images, request_for: RequestFor, machine: Machine
) -> None:
    request = request_for(images.make(64 * MIB))
    attachment = attacher.attach(request)
    assert size_bytes(attachment.device) == 64 * MIB
    assert attacher.find(request.spec) == attachment
    assert attachment.is_alive
    assert images.watchers(request.spec.image) == 1
    attacher.detach(request.spec)
    assert attacher.find(request.spec) is None
    assert images.watchers(request.spec.image) == 0
    machine.assert_clean()


def test_what_was_flushed_is_in_the_image_while_it_is_attached(attached: Attach, images: Images) -> None:
    name = images.make()
    write_to(attached(name).device, 5 * MIB, PATTERN)
    assert images.read(name, 5 * MIB, MIB) == PATTERN


def test_what_was_written_and_never_flushed_is_in_the_image_after_detaching(
    attacher: QemuAttacher, images: Images, request_for: RequestFor
) -> None:
    request = request_for(images.make())
    with Path(attacher.attach(request).device).open("r+b", buffering=0) as device:
        device.write(PATTERN)
    attacher.detach(request.spec)
    assert images.read(request.spec.image, 0, MIB) == PATTERN


def test_a_discard_gives_the_space_back(attached: Attach, images: Images) -> None:
    name = images.make()
    device = attached(name).device
    write_to(device, 0, PATTERN * 8)
    run(["blkdiscard", "--offset=0", f"--length={8 * MIB}", device], timeout=20)
    extents = []
    with images.opened(name) as image:
        image.diff_iterate(0, image.size(), None, lambda offset, _length, exists: extents.append((offset, exists)))
    assert extents == []


def test_attaching_and_detaching_again_change_nothing(
    attacher: QemuAttacher, images: Images, request_for: RequestFor, machine: Machine
) -> None:
    request = request_for(images.make())
    first = attacher.attach(request)
    pids = machine.daemons()
    assert attacher.attach(request) == first
    assert machine.daemons() == pids
    assert len(machine.loops()) == 1
    attacher.detach(request.spec)
    attacher.detach(request.spec)
    machine.assert_clean()


def test_detaching_what_was_never_attached_makes_no_directory(
    attacher: QemuAttacher, request_for: RequestFor, directory: Path
) -> None:
    attacher.detach(request_for("never").spec)
    assert not (directory / "qemu").exists()


def test_another_csi_host_finds_the_device_and_takes_it_away(
    attacher: QemuAttacher, images: Images, request_for: RequestFor, directory: Path, machine: Machine
) -> None:
    request = request_for(images.make())
    attachment = attacher.attach(request)
    successor = QemuAttacher(run=run, directory=directory / "qemu")
    assert successor.find(request.spec) == attachment
    assert successor.attach(request) == attachment
    successor.detach(request.spec)
    machine.assert_clean()


def test_the_daemon_does_not_belong_to_the_session_of_csi_host(
    attached: Attach, images: Images, machine: Machine
) -> None:
    attached(images.make())
    (pid,) = machine.daemons()
    assert os.getsid(pid) != os.getsid(0)
    assert os.getpgid(pid) != os.getpgid(0)


def test_a_read_only_attachment_refuses_writes(attached: Attach, images: Images) -> None:
    name = images.make()
    attachment = attached(name, read_only=True)
    assert attachment.read_only
    with pytest.raises(PermissionError):
        write_to(attachment.device, 0, PATTERN)


def test_a_device_that_somebody_left_read_only_can_be_written_all_the_same(attached: Attach, images: Images) -> None:
    free = run(["losetup", "--find"], timeout=20).stdout.strip()
    run(["blockdev", "--setro", free], timeout=20)
    try:
        write_to(attached(images.make()).device, 0, PATTERN)
    finally:
        run(["blockdev", "--setrw", free], timeout=20)


def test_an_unused_device_is_made_again_when_it_is_wanted_for_writing(
    attacher: QemuAttacher, attached: Attach, images: Images, request_for: RequestFor
) -> None:
    name = images.make()
    attached(name, read_only=True)
    attachment = attacher.attach(request_for(name))
    assert not attachment.read_only
    write_to(attachment.device, 0, PATTERN)


def test_images_with_the_same_name_in_two_clusters_are_told_apart(
    attacher: QemuAttacher, attached: Attach, images: Images, request_for: RequestFor
) -> None:
    request = request_for(images.make())
    attached(request.spec.image)
    elsewhere = type(request.spec)(cluster_id="ceph-b", pool=request.spec.pool, image=request.spec.image)
    assert attacher.find(elsewhere) is None


@pytest.mark.parametrize("write_before", [b"", PATTERN])
def test_a_device_grows_with_its_image_and_keeps_its_content(
    attacher: QemuAttacher, attached: Attach, images: Images, request_for: RequestFor, write_before: bytes
) -> None:
    name = images.make(64 * MIB)
    device = attached(name).device
    write_to(device, 0, write_before)
    images.resize(name, 96 * MIB)
    assert attacher.grow(request_for(name).spec) == 96 * MIB
    assert size_bytes(device) == 96 * MIB
    write_to(device, 95 * MIB, PATTERN)
    assert images.read(name, 95 * MIB, MIB) == PATTERN
    assert read_from(device, 0, len(write_before)) == write_before


def test_growing_twice_and_growing_what_has_not_grown_change_nothing(
    attacher: QemuAttacher, attached: Attach, images: Images, request_for: RequestFor
) -> None:
    name = images.make(64 * MIB)
    device = attached(name).device
    for _ in range(2):
        assert attacher.grow(request_for(name).spec) == 64 * MIB
    assert size_bytes(device) == 64 * MIB
    assert images.size(name) == 64 * MIB


def test_growing_a_read_only_device_is_refused_and_the_image_is_not_touched(
    attacher: QemuAttacher, attached: Attach, images: Images, request_for: RequestFor
) -> None:
    name = images.make(64 * MIB)
    attached(name, read_only=True)
    images.resize(name, 96 * MIB)
    with pytest.raises(FailedPrecondition, match="read-only"):
        attacher.grow(request_for(name).spec)
    assert images.size(name) == 96 * MIB


def test_growing_what_is_not_attached_says_so(attacher: QemuAttacher, request_for: RequestFor) -> None:
    with pytest.raises(AttachmentLost):
        attacher.grow(request_for("nothing").spec)


def test_a_mounted_device_is_not_taken_away(
    attacher: QemuAttacher, attached: Attach, images: Images, request_for: RequestFor, tmp_path: Path
) -> None:
    name = images.make()
    device = attached(name).device
    run(["mkfs.ext4", "-q", device], timeout=60)
    run(["mount", device, str(tmp_path)], timeout=20)
    try:
        with pytest.raises(DeviceInUse) as caught:
            attacher.detach(request_for(name).spec)
        assert str(tmp_path) in str(caught.value)
        (tmp_path / "file").write_text("still there")
    finally:
        run(["umount", str(tmp_path)], timeout=20)


def test_a_device_is_detached_by_its_name_alone(
    attacher: QemuAttacher, images: Images, request_for: RequestFor, machine: Machine
) -> None:
    request = request_for(images.make())
    attachment = attacher.attach(request)
    assert attacher.detach_device(attachment.device)
    machine.assert_clean()


def test_a_device_of_somebody_else_is_not_ours_to_detach(attacher: QemuAttacher, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(MIB))
    device = run(["losetup", "--find", "--show", str(file)], timeout=20).stdout.strip()
    try:
        assert not attacher.detach_device(device)
        assert not attacher.detach_device("/dev/null")
        assert size_bytes(device) == MIB
    finally:
        run(["losetup", "--detach", device], timeout=20)
