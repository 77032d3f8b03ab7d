"""Devices that fail, hang or cannot be probed while a volume is staged: nothing is formatted, and no call hangs."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator

import grpc
import pytest

from csi_host.process import run
from csi_host.testing.runner import Answer, ScriptedRunner
from csi_host_common_node.filesystem import Filesystems
from csi_host_common_node.patience import DeviceSilent, Patience
from csi_host_common_node.reading import DeviceUnclear, read_beginning
from csi_host_rbd.devcluster import DevCluster
from csi_host_rbd.node.marks import MARK_KEY
from csi_host_rbd.node.stash import STASH_NAME
from csi_host_rbd.testing.node_kit import FakeProgram, ImageOf, Kit, Node, Refused, Unchanged
from csi_host_rbd.testing.rig import block, mounted

pytestmark = [pytest.mark.ceph, pytest.mark.root, pytest.mark.usefixtures("short_watches")]

NOT_FINAL = {grpc.StatusCode.ABORTED, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE}


def insist(call: Callable[[], object], *, seconds: float = 60.0) -> None:
    """Repeat a call as kubelet does, until it succeeds or time is up."""
    until = time.monotonic() + seconds
    while True:
        try:
            call()
        except grpc.RpcError as error:
            if error.code() not in NOT_FINAL or time.monotonic() > until:
                raise
            time.sleep(0.3)
        else:
            return


def losetup_and(fake_program: FakeProgram, command: str) -> None:
    """Have something happen right after an image became a device, before anything is read of it."""
    real = shutil.which("losetup")
    fake_program("losetup", f'{real} "$@"; code=$?\ncase "$*" in *--show*) {command} >&2;; esac\nexit $code')


@pytest.fixture
def blocklist(ceph: DevCluster) -> Iterator[None]:
    yield
    ceph.ceph("osd", "blocklist", "clear")


@pytest.mark.usefixtures("blocklist")
def test_a_device_that_answers_with_errors_is_never_formatted(
    node: Node, ceph: DevCluster, refused: Refused, unchanged: Unchanged, fake_program: FakeProgram
) -> None:
    kit = node.make_volume(mounted(fs_type="ext4"))
    is_unchanged = unchanged(kit)
    # The cluster refuses whoever has the image open: every read of the device is an I/O error from then on.
    conf, image = f"-c {ceph.ceph_conf}", f"{node.rig.pool.name}/{kit.image}"
    watchers = f"rbd {conf} status {image} | sed -n 's/.*watcher=\\([^ ]*\\) .*/\\1/p'"
    losetup_and(fake_program, f"for one in $({watchers}); do ceph {conf} osd blocklist add $one; done")
    with refused("FAILED_PRECONDITION", "Input/output error", "mend the device", "Nothing is written"):
        kit.stage()
    assert is_unchanged()
    assert MARK_KEY not in kit.metadata()
    assert list(kit.staging.iterdir()) == []
    node.machine.assert_clean()
    (node.directory / "bin" / "losetup").unlink()
    ceph.ceph("osd", "blocklist", "clear")
    kit.stage()


def test_a_device_that_hangs_is_given_up_in_time_and_staged_when_it_is_back(
    node: Node, unchanged: Unchanged, fake_program: FakeProgram
) -> None:
    kit = node.make_volume(mounted(fs_type="ext4"))
    is_unchanged = unchanged(kit)
    losetup_and(fake_program, f"kill -STOP $(pgrep -f 'qemu-storage-daemon.*{node.directory}')")
    with pytest.raises(grpc.RpcError) as caught:
        kit.stage(timeout=4)
    (pid,) = node.machine.daemons()
    try:
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        (node.directory / "bin" / "losetup").unlink()
        # The handler ends and the volume's lock comes free, although the device still does not answer: it says so.
        until = time.monotonic() + 40
        while "still has" not in (words := error_of(kit)):
            assert time.monotonic() < until, words
            time.sleep(0.3)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert is_unchanged()
    insist(kit.stage)
    assert kit.publish().is_dir()


def error_of(kit: Kit) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        kit.stage()
    assert caught.value.code() in NOT_FINAL
    return str(caught.value.details())


def test_a_probe_that_hangs_never_formats(node: Node, unchanged: Unchanged, fake_program: FakeProgram) -> None:
    kit = node.make_volume(mounted(fs_type="ext4"))
    is_unchanged = unchanged(kit)
    fake_program("blkid", "exec sleep 300")
    with pytest.raises(grpc.RpcError) as caught:
        kit.stage(timeout=4)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    (node.directory / "bin" / "blkid").unlink()
    # The first call is over, and has taken back what it made, before anything else is let at the volume.
    insist(kit.unstage)
    assert is_unchanged()
    assert MARK_KEY not in kit.metadata()
    assert list(kit.staging.iterdir()) == []
    node.machine.assert_clean()


def test_a_probe_that_takes_too_long_says_what_to_look_at(node: Node) -> None:
    kit = node.make_volume(block())
    kit.stage()
    hanging = Filesystems(ScriptedRunner({"blkid": Answer(hangs=True)}))
    with pytest.raises(DeviceUnclear, match=r"did not end within 30 s.*its daemon, its cluster.*tried again"):
        hanging.content_of(kit.loop())
    with node.machine.stopped_daemon(), pytest.raises(DeviceSilent, match=r"its daemon and its cluster.*ask again"):
        Patience().look(kit.loop(), lambda: read_beginning(kit.loop()), at_most=0.5)


def test_an_ext4_whose_first_mib_is_gone_is_never_formatted(
    node: Node, refused: Refused, image_of: ImageOf, unchanged: Unchanged
) -> None:
    kit = node.make_volume(mounted(fs_type="ext4"))
    kit.stage()
    (kit.publish() / "file").write_text("precious" * 1000)
    kit.unpublish()
    kit.unstage()
    node.rig.pool.rbd("image-meta", "remove", kit.image, MARK_KEY)
    with image_of(kit) as image:
        image.write(bytes(1024**2), 0)
    is_unchanged = unchanged(kit)
    with refused("FAILED_PRECONDITION", "has data at byte", "e2fsck -b", "blkdiscard"):
        kit.stage()
    assert is_unchanged()


def test_a_lost_stash_and_a_detaching_that_fails_leave_a_note_for_the_next_call(
    node: Node, refused: Refused, fake_program: FakeProgram
) -> None:
    kit = node.make_volume(mounted(fs_type="ext4"))
    kit.stage()
    (kit.staging / STASH_NAME).unlink()
    real = shutil.which("losetup")
    fake_program("losetup", f'case "$*" in *--detach*) echo no such luck >&2; exit 1;; esac; exec {real} "$@"')
    with refused("INTERNAL", "no such luck"):
        kit.unstage()
    assert len(node.machine.daemons()) == 1
    (node.directory / "bin" / "losetup").unlink()
    kit.unstage()
    assert list(kit.staging.iterdir()) == []
    node.machine.assert_clean()


def test_a_note_of_a_device_that_is_anothers_by_now_is_not_followed(
    node: Node, refused: Refused, fake_program: FakeProgram
) -> None:
    kit, other = (node.make_volume(mounted(fs_type="ext4")) for _ in range(2))
    kit.stage()
    device = kit.loop()
    (kit.staging / STASH_NAME).unlink()
    real = shutil.which("losetup")
    fake_program("losetup", f'case "$*" in *--detach*) echo no such luck >&2; exit 1;; esac; exec {real} "$@"')
    with refused("INTERNAL", "no such luck"):
        kit.unstage()
    (node.directory / "bin" / "losetup").unlink()
    run(["losetup", "--detach", device], timeout=20)
    node.machine.kill_daemon()
    for place in node.machine.mounts():
        run(["umount", "--", place], timeout=20)
    shutil.rmtree(node.directory / "qemu")
    other.stage()
    assert other.loop() == device
    kit.unstage()
    assert list(kit.staging.iterdir()) == []
    assert (other.publish("other") / "lost+found").is_dir()
    assert other.loop() == device
