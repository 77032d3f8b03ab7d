"""What the qemu mounter makes of csi-host and its daemons dying, hanging and being refused, at every point."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from csi_host.errors import Aborted, CsiError, FailedPrecondition, InvalidArgument
from csi_host.process import ProcessResult, run
from csi_host.request import Request, serving
from csi_host_rbd.attach import attacher as attacher_module
from csi_host_rbd.attach.attacher import Attachment, AttachmentLost, AttachRequest
from csi_host_rbd.attach.qemu import QemuAttacher
from csi_host_rbd.attach.storage_daemon import ImageNotOpened
from csi_host_rbd.testing.images import Images
from csi_host_rbd.testing.kills import killed_at
from csi_host_rbd.testing.machine import Machine

pytestmark = [pytest.mark.ceph, pytest.mark.root]

MIB = 1024**2

RequestFor = Callable[..., AttachRequest]
Attach = Callable[..., Attachment]
PATTERN = bytes(range(256)) * 4096
PACKAGE = Path(attacher_module.__file__).parent


# Who is killed closes nothing; here the garbage collector does it in the kernel's stead, and says so.
killed_in_the_middle = pytest.mark.filterwarnings(
    "ignore:unclosed:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Hold the directory as another csi-host would."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write(device: str, data: bytes) -> None:
    with Path(device).open("r+b", buffering=0) as file:
        file.write(data)


def read(device: str, length: int) -> bytes:
    with Path(device).open("rb", buffering=0) as file:
        return file.read(length)


@killed_in_the_middle
def test_wherever_an_attach_is_cut_off_the_next_one_completes_it(
    attacher: QemuAttacher, images: Images, request_for: RequestFor, machine: Machine
) -> None:
    request = request_for(images.make())
    step, happened = 0, [0]
    while happened:
        step += 1
        with killed_at(step, [PACKAGE]) as happened:
            attacher.attach(request)
        attachment = attacher.attach(request)
        assert (len(machine.daemons()), machine.loops()) == (1, [attachment.device]), step
        assert read(attachment.device, 4096) == bytes(4096)
        attacher.detach(request.spec)
        machine.assert_clean()
    # Fewer steps than these, and the killing has not worked.
    assert step > 50


@killed_in_the_middle
def test_wherever_an_attach_is_cut_off_it_can_be_detached(
    attacher: QemuAttacher, images: Images, request_for: RequestFor, machine: Machine
) -> None:
    request = request_for(images.make())
    step, happened = 0, [0]
    while happened:
        step += 1
        with killed_at(step, [PACKAGE]) as happened:
            attacher.attach(request)
        attacher.detach(request.spec)
        machine.assert_clean()
    assert images.watchers(request.spec.image) == 0


@killed_in_the_middle
def test_wherever_a_detach_is_cut_off_the_next_one_completes_it(
    attacher: QemuAttacher, images: Images, request_for: RequestFor, machine: Machine
) -> None:
    request = request_for(images.make())
    step, happened = 0, [0]
    while happened:
        step += 1
        attacher.attach(request)
        with killed_at(step, [PACKAGE]) as happened:
            attacher.detach(request.spec)
        attacher.detach(request.spec)
        machine.assert_clean()
    assert step > 20


@killed_in_the_middle
def test_wherever_growing_is_cut_off_the_next_one_completes_it(
    attacher: QemuAttacher, attached: Attach, images: Images, request_for: RequestFor
) -> None:
    request = request_for(images.make(64 * MIB))
    attached(request.spec.image)
    step, size, happened = 0, 64 * MIB, [0]
    while happened:
        step += 1
        size += 4 * MIB
        images.resize(request.spec.image, size)
        with killed_at(step, [PACKAGE]) as happened:
            attacher.grow(request.spec)
        assert attacher.grow(request.spec) == size
        assert images.size(request.spec.image) == size
    assert step > 20


def test_a_killed_daemon_is_seen_and_replaced(
    attacher: QemuAttacher, attached: Attach, images: Images, request_for: RequestFor, machine: Machine
) -> None:
    name = images.make()
    write(attached(name).device, PATTERN)
    machine.kill_daemon()
    dead = attacher.find(request_for(name).spec)
    assert dead is not None
    assert not dead.is_alive
    with Path(dead.device).open("rb", buffering=0) as file:
        file.seek(32 * MIB)
        with pytest.raises(OSError, match="Input/output error"):
            file.read(4096)
    attachment = attached(name)
    assert attachment.is_alive
    assert read(attachment.device, MIB) == PATTERN
    assert machine.loops() == [attachment.device]


def test_a_killed_daemon_leaves_nothing_behind_after_detaching(
    attacher: QemuAttacher, images: Images, request_for: RequestFor, machine: Machine
) -> None:
    request = request_for(images.make())
    attacher.attach(request)
    machine.kill_daemon()
    attacher.detach(request.spec)
    machine.assert_clean()


def test_growing_on_a_killed_daemon_says_that_it_is_lost(
    attacher: QemuAttacher, attached: Attach, images: Images, request_for: RequestFor, machine: Machine
) -> None:
    name = images.make()
    attached(name)
    machine.kill_daemon()
    with pytest.raises(AttachmentLost, match="stage"):
        attacher.grow(request_for(name).spec)


def test_a_mount_that_somebody_removed_behind_our_back_is_made_anew(attached: Attach, images: Images) -> None:
    name = images.make()
    device = attached(name).device
    file = Path("/sys/block", Path(device).name, "loop/backing_file").read_text().strip()
    run(["umount", "--lazy", file], timeout=20)
    try:
        write(attached(name).device, PATTERN)
        assert images.read(name, 0, MIB) == PATTERN
    finally:
        # The kernel has forgotten the name of the file behind it, so nobody can tell whose it was.
        run(["losetup", "--detach", device], timeout=20)


def test_growing_on_a_hung_daemon_ends_with_the_callers_deadline(
    attacher: QemuAttacher, attached: Attach, images: Images, request_for: RequestFor, machine: Machine
) -> None:
    name = images.make()
    attached(name)
    with machine.stopped_daemon(), serving(Request(rpc="x", request_id="1", deadline=time.monotonic() + 1)):
        with pytest.raises(CsiError) as caught:
            attacher.grow(request_for(name).spec)
        assert not caught.value.is_final
    assert attacher.grow(request_for(name).spec) == 64 * MIB


def test_a_hung_daemon_of_one_image_does_not_hinder_another(
    attacher: QemuAttacher, attached: Attach, images: Images, request_for: RequestFor, machine: Machine
) -> None:
    attached(images.make())
    with machine.stopped_daemon():
        # The kernel's cache of the exported file's attributes lasts a second, and only then is the daemon asked.
        time.sleep(1.2)
        request = request_for(images.make())
        started = time.monotonic()
        attacher.attach(request)
        attacher.detach(request.spec)
        assert time.monotonic() - started < 5


def test_a_hung_daemon_is_killed_once_nobody_uses_its_device(
    images: Images, request_for: RequestFor, directory: Path, machine: Machine
) -> None:
    request = request_for(images.make())
    attacher = QemuAttacher(run=run, directory=directory / "qemu", patience=0.5)
    device = attacher.attach(request).device
    write(device, PATTERN)
    run(["losetup", "--detach", device], timeout=20)
    with machine.stopped_daemon():
        attacher.detach(request.spec)
    machine.assert_clean()
    assert images.read(request.spec.image, 0, MIB) == PATTERN


@pytest.mark.parametrize(
    "changes",
    [{"key": "QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQQ=="}, {"user": "nobody"}, {"key": "no base64!"}],
)
def test_a_refusal_of_the_cluster_is_readable_shows_no_key_and_leaves_nothing(
    changes: dict[str, str],
    attacher: QemuAttacher,
    images: Images,
    request_for: RequestFor,
    machine: Machine,
) -> None:
    request = request_for(images.make(), **changes)
    with pytest.raises(ImageNotOpened) as caught:
        attacher.attach(request)
    assert "connecting" in str(caught.value) or "Base64" in str(caught.value)
    assert request.spec.image in str(caught.value)
    assert request.key not in str(caught.value)
    assert request.key not in repr(request)
    machine.assert_clean()


def test_a_missing_image_is_named(attacher: QemuAttacher, request_for: RequestFor, machine: Machine) -> None:
    with pytest.raises(ImageNotOpened, match=r"no-such-image.*No such file"):
        attacher.attach(request_for("no-such-image"))
    machine.assert_clean()


def test_a_cluster_that_cannot_be_reached_is_given_up_in_time(
    images: Images, request_for: RequestFor, directory: Path, machine: Machine
) -> None:
    attacher = QemuAttacher(run=run, directory=directory / "qemu", connect_timeout=1)
    with pytest.raises(ImageNotOpened, match="timed out"):
        attacher.attach(request_for(images.make(), mon_host="v2:127.0.0.1:9"))
    machine.assert_clean()


def test_a_loop_device_that_cannot_be_had_leaves_nothing(
    images: Images, request_for: RequestFor, directory: Path, machine: Machine
) -> None:
    def no_loop_device(argv: Sequence[str], **arguments: Any) -> ProcessResult:
        return run(["false"] if argv[0] == "losetup" else argv, **arguments)

    attacher = QemuAttacher(run=no_loop_device, directory=directory / "qemu")
    with pytest.raises(CsiError):
        attacher.attach(request_for(images.make()))
    machine.assert_clean()


def test_the_key_is_nowhere_on_disk_or_on_a_command_line(
    attached: Attach, images: Images, request_for: RequestFor, directory: Path, machine: Machine
) -> None:
    key = request_for("x").key
    attached(images.make())
    (pid,) = machine.daemons()
    assert key not in Path(f"/proc/{pid}/cmdline").read_text()
    assert key not in Path(f"/proc/{pid}/environ").read_text()
    files = [path for path in directory.rglob("*") if path.is_file() and path.name != "image"]
    assert {path.name for path in files} == {"ceph.conf", "node.json", "spec.json"}
    assert [path for path in files if key in path.read_text()] == []
    assert (directory / "qemu").stat().st_mode & 0o777 == 0o700


def test_an_address_that_would_add_settings_is_refused(
    attacher: QemuAttacher, request_for: RequestFor, machine: Machine
) -> None:
    with pytest.raises(InvalidArgument, match="printable"):
        attacher.attach(request_for("x", mon_host="127.0.0.1\nkeyring = /etc/shadow"))
    machine.assert_clean()


@pytest.mark.parametrize("style", ["v1", "v2", "both", "plain"])
def test_every_way_of_writing_the_monitors_works(
    style: str, attached: Attach, images: Images, request_for: RequestFor
) -> None:
    mon_host = request_for("x").mon_host
    parts = dict(part.split(":", 1) for part in mon_host.strip("[]").split(","))
    addresses = {
        "v1": f"v1:{parts['v1']}",
        "v2": f"v2:{parts['v2']}",
        "both": f"[v2:{parts['v2']}/0,v1:{parts['v1']}/0]",
        "plain": parts["v1"],
    }
    write(attached(images.make(), mon_host=addresses[style]).device, PATTERN)


def test_an_operators_settings_are_used_but_monitors_and_key_are_the_requests(
    images: Images, request_for: RequestFor, directory: Path
) -> None:
    request = request_for(images.make())
    conf = directory / "operator.conf"
    conf.write_text(
        "[global]\nmon host = 192.0.2.1\nkeyring = /nonexistent\n"
        f"[client.{request.user}]\nmon host = 192.0.2.1\nrbd non blocking aio = false\n"
    )
    attacher = QemuAttacher(run=run, directory=directory / "qemu", ceph_conf=conf)
    try:
        write(attacher.attach(request).device, PATTERN)
        (used,) = directory.glob("qemu/*/ceph.conf")
        assert "rbd non blocking aio = false" in used.read_text()
    finally:
        attacher.detach(request.spec)


def test_two_csi_hosts_do_not_work_on_one_image_at_once(
    attacher: QemuAttacher, images: Images, request_for: RequestFor, directory: Path
) -> None:
    request = request_for(images.make())
    attacher.attach(request)
    (home,) = (directory / "qemu").iterdir()
    with held(home):
        with pytest.raises(Aborted, match="another process"):
            attacher.detach(request.spec)
        with pytest.raises(Aborted, match="another process"):
            attacher.attach(request)
    attacher.detach(request.spec)


def test_a_directory_that_is_too_long_for_a_socket_is_refused_before_anything_is_made(
    request_for: RequestFor, directory: Path
) -> None:
    long = directory / ("x" * 90)
    with pytest.raises(FailedPrecondition, match="too long"):
        QemuAttacher(run=run, directory=long).attach(request_for("x"))
    assert not long.exists()


def test_a_machine_without_the_storage_daemon_is_told_what_to_install(
    request_for: RequestFor, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(FailedPrecondition, match=r"qemu-storage-daemon.*qemu-system-common"):
        QemuAttacher(run=run, directory=directory / "qemu").attach(request_for("x"))
    assert not (directory / "qemu").exists()
