"""Which devices are healed, and what is said of those that cannot be; dead daemons of real ones are in tests/kernel."""

import logging
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest

from csi_host.locks import VolumeLocks
from csi_host.process import run
from csi_host.testing.runner import ScriptedRunner
from csi_host_rbd.attach.attacher import AttachmentLost, ImageSpec
from csi_host_rbd.attach.client import MAPS_AT_ONCE, RbdClient
from csi_host_rbd.attach.kept_requests import KeptRequests
from csi_host_rbd.attach.nbd import NbdAttacher
from csi_host_rbd.node.healer import Healer
from csi_host_rbd.node.stash import STASH_NAME, Stash, write_stash
from csi_host_rbd.volume_id import VolumeId

pytestmark = pytest.mark.root

VOLUME = "0001-0004-heal-0000000000000001-11111111-2222-3333-4444-555555555555"
STASH = Stash(pool="rbd", image="one", cluster_id="ceph-a", fsid="a", volume_id=VOLUME, mounter="rbd-nbd")


class Patient(NbdAttacher):
    """An attacher with dead devices, of which it knows how some were attached."""

    def __init__(self, *dead: str) -> None:
        bare = ScriptedRunner()
        super().__init__(run=bare, client=RbdClient(run=bare), kept=KeptRequests())
        self.dead = list(dead)
        self.is_known = True
        self.fails: Exception | None = None
        self.asked: list[ImageSpec] = []
        self.was_asked = Event()

    def dead_cookies(self) -> list[str]:
        return list(self.dead)

    def heal(self, spec: ImageSpec) -> bool:
        self.asked.append(spec)
        self.was_asked.set()
        if self.fails:
            raise self.fails
        if self.is_known:
            self.dead.remove(spec.volume_id)
        return self.is_known


class Silent(Patient):
    """One whose cluster ``silent`` does not answer until it is let."""

    def __init__(self, *dead: str) -> None:
        super().__init__(*dead)
        self.answers = Event()
        self.is_full = Event()

    def heal(self, spec: ImageSpec) -> bool:
        if spec.cluster_id == "silent":
            self.asked.append(spec)
            if len(self.asked) == MAPS_AT_ONCE // 2:
                self.is_full.set()
            self.answers.wait(30)
            return False
        return super().heal(spec)


@contextmanager
def mounted(directory: Path, volume_id: str) -> Iterator[Path]:
    target = directory / volume_id
    target.mkdir(parents=True)
    run(["mount", "-t", "tmpfs", "none", str(target)], timeout=20)
    try:
        yield directory
    finally:
        run(["umount", str(target)], timeout=20)


@pytest.fixture
def staging(tmp_path: Path) -> Iterator[Path]:
    """A staging directory where the volume is mounted."""
    with mounted(tmp_path / "globalmount", VOLUME) as directory:
        yield directory


def test_a_staged_volumes_dead_device_is_healed_from_what_its_stash_says(
    staging: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_stash(staging, STASH)
    nbd = Patient(VOLUME, "of-a-volume-that-is-not-staged")
    with caplog.at_level(logging.WARNING):
        Healer(nbd, VolumeLocks()).heal_all()
    assert nbd.asked == [STASH.spec]
    assert nbd.asked[0].fsid == "a"
    assert f"volume {VOLUME}: its rbd-nbd had died; another one serves its device now" in caplog.messages


@pytest.mark.parametrize(
    "stash", [None, replace(STASH, mounter="qemu"), replace(STASH, volume_id="another")], ids=["none", "qemu", "other"]
)
def test_what_is_not_this_drivers_nbd_volume_is_left_alone(staging: Path, stash: Stash | None) -> None:
    if stash:
        write_stash(staging, stash)
    nbd = Patient(VOLUME)
    Healer(nbd, VolumeLocks()).heal_all()
    assert nbd.asked == []


def test_a_stash_of_ceph_csi_does_not_say_whose_it_is_but_its_directory_does(staging: Path) -> None:
    write_stash(staging, replace(STASH, volume_id="", cluster_id=""))
    nbd = Patient(VOLUME)
    Healer(nbd, VolumeLocks()).heal_all()
    assert [spec.volume_id for spec in nbd.asked] == [VOLUME]


def test_a_volume_that_a_call_works_on_is_left_to_it_until_the_next_look(staging: Path) -> None:
    write_stash(staging, STASH)
    nbd, locks = Patient(VOLUME), VolumeLocks()
    healer = Healer(nbd, locks)
    with locks.hold(VOLUME):
        healer.heal_all()
    assert nbd.asked == []
    healer.heal_all()
    assert nbd.dead == []


def test_what_cannot_be_healed_is_said_once_and_tried_again(staging: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_stash(staging, STASH)
    nbd = Patient(VOLUME)
    nbd.is_known = False
    healer = Healer(nbd, VolumeLocks())
    for _ in range(3):
        healer.heal_all()
    nbd.fails = AttachmentLost("the cluster does not answer")
    for _ in range(3):
        healer.heal_all()
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(said) == 2
    assert "key to start another one is not known" in said[0]
    assert "the cluster does not answer" in said[1]
    assert len(nbd.asked) == 6


def test_a_damaged_stash_is_said(staging: Path, caplog: pytest.LogCaptureFixture) -> None:
    (staging / STASH_NAME).write_text("{")
    Healer(Patient(VOLUME), VolumeLocks()).heal_all()
    assert str(staging / STASH_NAME) in caplog.text


def test_it_looks_at_once_and_again_until_it_is_stopped(staging: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_stash(staging, STASH)
    nbd = Patient(VOLUME)
    nbd.fails = ZeroDivisionError("a mistake of ours")
    healer = Healer(nbd, VolumeLocks(), period=0.05)
    healer.start()
    try:
        assert nbd.was_asked.wait(10)
        nbd.fails = None
        until = time.monotonic() + 10
        while nbd.dead and time.monotonic() < until:
            time.sleep(0.02)
        assert nbd.dead == []
    finally:
        healer.stop()
    assert "healing devices without a daemon failed" in caplog.text


def until(is_so: Callable[[], bool]) -> bool:
    end = time.monotonic() + 20
    while not is_so() and time.monotonic() < end:
        time.sleep(0.02)
    return is_so()


@pytest.mark.parametrize("form", ["a handle", "an administrator's id"])
def test_a_cluster_that_does_not_answer_holds_no_other_ones_devices_up_nor_takes_all_map_slots(
    staging: Path, tmp_path: Path, form: str
) -> None:
    silent = [
        str(VolumeId(cluster_id="silent", pool_id=1, uuid=str(uuid.uuid4()))) if form == "a handle" else f"static-{n}"
        for n in range(MAPS_AT_ONCE)
    ]
    write_stash(staging, STASH)
    nbd = Silent(*silent)
    healer = Healer(nbd, VolumeLocks(), period=0.05)
    with ExitStack() as mounts:
        for volume_id in silent:
            place = mounts.enter_context(mounted(tmp_path / f"of-{volume_id}", volume_id))
            write_stash(place, replace(STASH, cluster_id="silent", volume_id=volume_id))
        healer.start()
        try:
            assert nbd.is_full.wait(20)
            # Dies while the others are being tried.
            nbd.dead.append(VOLUME)
            assert until(lambda: VOLUME not in nbd.dead)
            assert len([spec for spec in nbd.asked if spec.cluster_id == "silent"]) == MAPS_AT_ONCE // 2
        finally:
            healer.stop()
            nbd.answers.set()
