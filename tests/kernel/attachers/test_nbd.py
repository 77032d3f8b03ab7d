"""The rbd-nbd mounter on the kernel's nbd module."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from csi_host.node.devices import is_read_only, size_bytes
from csi_host.process import run
from csi_host_rbd.attach.attacher import AttachmentLost, AttachRequest, DeviceInUse, ImageSpec
from csi_host_rbd.attach.client import RbdClient
from csi_host_rbd.attach.kept_requests import KeptRequests
from csi_host_rbd.attach.keyring import Keyring
from csi_host_rbd.attach.nbd import NbdAttacher
from csi_host_rbd.attach.processes import find_processes, wait_for_end
from csi_host_rbd.testing.images import MIB, Images

pytestmark = [pytest.mark.ceph, pytest.mark.root]

RequestFor = Callable[..., AttachRequest]
PATTERN = bytes(range(256)) * 4096


def daemons(spec: ImageSpec) -> list[int]:
    return find_processes("rbd-nbd", str(spec))


def kill_daemon(spec: ImageSpec) -> None:
    (pid,) = daemons(spec)
    os.kill(pid, signal.SIGKILL)
    assert wait_for_end(pid, "rbd-nbd", str(spec), timeout=10)


def write_through(path: Path, data: bytes) -> None:
    # Not sync(2), which would wait for every other device of the machine as well.
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def after_a_restart(client: RbdClient) -> NbdAttacher:
    """The attacher of another csi-host process: it has nothing in memory."""
    return NbdAttacher(run=run, client=client, kept=KeptRequests(Keyring()), patience=15)


@contextmanager
def mounted(device: str, place: Path) -> Iterator[Path]:
    run(["mount", device, str(place)], timeout=60)
    try:
        yield place
    finally:
        run(["umount", str(place)], timeout=60)


def test_an_image_is_mapped_once_found_and_unmapped(nbd: NbdAttacher, images: Images, request_for: RequestFor) -> None:
    request = request_for(images.make())
    assert nbd.find(request.spec) is None
    made = nbd.attach(request)
    assert Path(made.device).name.startswith("nbd")
    assert nbd.attach(request) == made == nbd.find(request.spec)
    assert len(daemons(request.spec)) == 1
    with Path(made.device).open("r+b") as device:
        device.write(PATTERN)
    nbd.detach(request.spec)
    nbd.detach(request.spec)
    assert nbd.find(request.spec) is None
    # Written through the page cache by one who did not flush: it is in the image all the same.
    assert images.read(request.spec.image, 0, len(PATTERN)) == PATTERN


def test_no_key_is_on_the_daemons_command_line_or_in_its_environment(
    nbd: NbdAttacher, images: Images, request_for: RequestFor
) -> None:
    request = request_for(images.make())
    nbd.attach(request)
    (pid,) = daemons(request.spec)
    seen = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
    assert request.key.encode() not in seen


def test_the_daemon_has_a_session_of_its_own(nbd: NbdAttacher, images: Images, request_for: RequestFor) -> None:
    request = request_for(images.make())
    nbd.attach(request)
    (pid,) = daemons(request.spec)
    assert os.getsid(pid) != os.getsid(0)
    assert os.getpgid(pid) != os.getpgid(0)


def test_a_read_only_map_refuses_writes_and_is_made_anew_for_writing(
    nbd: NbdAttacher, images: Images, request_for: RequestFor
) -> None:
    name = images.make()
    read_only = nbd.attach(request_for(name, read_only=True))
    assert read_only.read_only
    assert is_read_only(read_only.device)
    assert not nbd.attach(request_for(name)).read_only


@pytest.mark.parametrize("is_restarted", [False, True])
def test_the_device_has_the_size_that_the_image_grew_to(
    nbd: NbdAttacher, images: Images, request_for: RequestFor, client: RbdClient, *, is_restarted: bool
) -> None:
    request = request_for(images.make(32 * MIB))
    device = nbd.attach(request).device
    images.resize(request.spec.image, 96 * MIB)
    attacher = after_a_restart(client) if is_restarted else nbd
    assert attacher.grow(request.spec) == 96 * MIB == size_bytes(device)
    with Path(device).open("r+b") as file:
        file.seek(95 * MIB)
        file.write(b"at the end")
    nbd.detach(request.spec)
    assert images.read(request.spec.image, 95 * MIB, 10) == b"at the end"


@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_dead_daemon_is_replaced_below_the_mount(
    nbd: NbdAttacher, images: Images, request_for: RequestFor, client: RbdClient, tmp_path: Path, *, is_restarted: bool
) -> None:
    request = request_for(images.make())
    device = nbd.attach(request).device
    run(["mkfs.ext4", "-q", device], timeout=60)
    with mounted(device, tmp_path) as place:
        (place / "before").write_bytes(PATTERN)
        kill_daemon(request.spec)
        found = nbd.find(request.spec)
        assert found is not None
        assert (found.device, found.is_alive) == (device, False)
        with pytest.raises(AttachmentLost):
            nbd.grow(request.spec)
        attacher = after_a_restart(client) if is_restarted else nbd
        assert attacher.dead_cookies() == [request.spec.volume_id]
        assert attacher.heal(request.spec)
        assert attacher.dead_cookies() == []
        write_through(place / "after", PATTERN)
        assert (place / "before").read_bytes() == PATTERN
    nbd.detach(request.spec)
    device = nbd.attach(request_for(request.spec.image)).device
    with mounted(device, tmp_path) as place:
        assert (place / "after").read_bytes() == PATTERN


def test_the_next_attach_replaces_a_dead_daemon_and_a_replaced_one_that_died_again(
    nbd: NbdAttacher, images: Images, request_for: RequestFor
) -> None:
    request = request_for(images.make())
    device = nbd.attach(request).device
    for _ in range(2):
        kill_daemon(request.spec)
        again = nbd.attach(request)
        assert (again.device, again.is_alive) == (device, True)


def test_what_was_not_yet_written_when_the_daemon_died_is_in_the_image_after_unmapping(
    nbd: NbdAttacher, images: Images, request_for: RequestFor
) -> None:
    request = request_for(images.make())
    device = nbd.attach(request).device
    # Open throughout, as a mounted filesystem and kubelet's loop device have it.
    with Path(device).open("r+b") as file:
        file.write(PATTERN)
        file.flush()
        kill_daemon(request.spec)
        assert nbd.heal(request.spec)
    nbd.detach(request.spec)
    assert nbd.find(request.spec) is None
    assert images.read(request.spec.image, 0, len(PATTERN)) == PATTERN


def test_an_open_or_mounted_device_stays_and_the_error_says_who_has_it(
    nbd: NbdAttacher, images: Images, request_for: RequestFor, client: RbdClient, tmp_path: Path
) -> None:
    """rbd-nbd itself would take it away from under the mount."""
    request = request_for(images.make())
    device = nbd.attach(request).device
    impatient = NbdAttacher(run=run, client=client, kept=KeptRequests(), patience=1)
    with Path(device).open("rb"), pytest.raises(DeviceInUse, match="process"):
        impatient.detach(request.spec)
    run(["mkfs.ext4", "-q", device], timeout=60)
    with mounted(device, tmp_path) as place:
        with pytest.raises(DeviceInUse, match=str(tmp_path)):
            nbd.detach(request.spec)
        write_through(place / "file", PATTERN)
    nbd.detach(request.spec)


def test_an_image_of_that_name_of_another_cluster_is_not_it(
    nbd: NbdAttacher, images: Images, request_for: RequestFor
) -> None:
    name = images.make()
    made = nbd.attach(request_for(name))
    assert nbd.find(request_for(name, volume_id="the-other-cluster's").spec) is None
    # A stash of ceph-csi before its version 3.9 does not say which volume it is of.
    assert nbd.find(request_for(name, volume_id="").spec) == made


def test_a_device_is_unmapped_by_its_name_when_the_image_is_not_known(
    nbd: NbdAttacher, images: Images, request_for: RequestFor
) -> None:
    request = request_for(images.make())
    device = nbd.attach(request).device
    assert not nbd.detach_device("/dev/loop0")
    assert nbd.detach_device(device)
    assert nbd.find(request.spec) is None
