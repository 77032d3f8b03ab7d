"""Volumes whose stash is gone or damaged are unstaged all the same, and nobody else's device is taken for theirs."""

import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from csi_host.errors import CsiError
from csi_host.node.mounts import mount_at, mounts_of_device
from csi_host.process import ProcessError, ProcessResult, run
from csi_host.proto import csi_pb2
from csi_host.testing.runner import Answer, Command, ScriptedRunner
from csi_host_rbd.attach.qemu import QemuAttacher
from csi_host_rbd.attach.registry import Attachers
from csi_host_rbd.encryption.luks import Luks
from csi_host_rbd.encryption.mappings import Mappings
from csi_host_rbd.node import lost_volumes
from csi_host_rbd.node.devices import Devices
from csi_host_rbd.node.lost_stash import note_devices, noted_devices
from csi_host_rbd.node.staging import Staging
from csi_host_rbd.node.stash import STASH_NAME
from csi_host_rbd.node.volumes import NodeVolumes
from csi_host_rbd.testing.node_kit import MIB, Kit, Node, Refused
from csi_host_rbd.testing.rig import block, mounted

pytestmark = [pytest.mark.ceph, pytest.mark.root]

DM = Path("/dev/dm-977")


def unmount(path: Path) -> None:
    run(["umount", str(path)], timeout=20)


def lose_content(stash: Path) -> None:
    """What a power cut leaves of a file that was written without fsync."""
    stash.write_bytes(b"")


def damage(stash: Path) -> None:
    stash.write_text("{")


@pytest.fixture
def staged(node: Node) -> Kit:
    kit = node.make_volume(mounted(fs_type="ext4"))
    kit.stage()
    return kit


def static(node: Node, kit: Kit) -> Kit:
    """Return the volume as an administrator would write it into a PersistentVolume."""
    context = {"staticVolume": "true", "clusterID": "dev", "pool": node.rig.pool.name, "mounter": "qemu"}
    return node.kit_for(csi_pb2.Volume(volume_id=kit.image, volume_context=context), kit.capability)


@pytest.mark.parametrize("spoil", [lose_content, damage, Path.unlink])
def test_a_device_without_stash_and_mount_is_found_by_the_volume(
    node: Node, staged: Kit, spoil: Callable[[Path], None]
) -> None:
    unmount(staged.staged)
    spoil(staged.staging / STASH_NAME)
    staged.unstage()
    node.machine.assert_clean()
    assert list(staged.staging.iterdir()) == []


def test_a_storage_daemon_without_a_device_is_found_as_well(node: Node, staged: Kit) -> None:
    unmount(staged.staged)
    run(["losetup", "--detach", staged.loop()], timeout=20)
    lose_content(staged.staging / STASH_NAME)
    staged.unstage()
    node.machine.assert_clean()


@pytest.mark.parametrize("spoil", [lose_content, damage])
def test_a_damaged_stash_goes_when_nothing_is_attached(node: Node, staged: Kit, spoil: Callable[[Path], None]) -> None:
    stash = staged.staging / STASH_NAME
    staged.unstage()
    spoil(stash)
    staged.unstage()
    assert list(staged.staging.iterdir()) == []
    node.machine.assert_clean()


def test_a_device_that_a_pod_still_has_stays_and_the_place_is_named(staged: Kit, refused: Refused) -> None:
    target = staged.publish()
    unmount(staged.staged)
    lose_content(staged.staging / STASH_NAME)
    with refused("ABORTED", str(target), "unmount"):
        staged.unstage()
    assert mount_at(target) is not None
    (target / "file").write_text("data")


def test_a_volume_staged_elsewhere_stays_when_a_path_without_a_stash_is_unstaged(node: Node, staged: Kit) -> None:
    (node.directory / "elsewhere").mkdir()
    staged.unstage(staging_target_path=str(node.directory / "elsewhere"))
    (staged.staged / "file").write_text("data")
    assert mount_at(staged.staged) is not None


def test_devices_of_other_volumes_stay(node: Node, staged: Kit) -> None:
    other = node.make_volume(block())
    other.stage()
    unmount(other.staged)
    unmount(staged.staged)
    lose_content(staged.staging / STASH_NAME)
    before = set(node.machine.loops())
    staged.unstage()
    (device,) = node.machine.loops()
    assert device in before
    with Path(device).open("r+b", buffering=0) as file:
        file.write(b"x" * 4096)
    other.stage()
    assert other.loop() == device


def test_a_volume_of_an_administrator_is_found_by_its_image_only_with_the_rest_of_a_stash(
    node: Node, staged: Kit
) -> None:
    staged.unstage()
    one = static(node, staged)
    one.stage()
    unmount(one.staged)
    # Whoever attached an image of that name: without a trace of a staging it is not known to be this volume's.
    foreign = next((node.directory / "qemu").glob("*/spec.json"))
    foreign.write_text(foreign.read_text().replace(f'"volume_id": "{one.volume.volume_id}"', '"volume_id": ""'))
    stash = one.staging / STASH_NAME
    whole = stash.read_text()
    stash.unlink()
    one.unstage()
    assert len(node.machine.loops()) == 1
    one.staging.mkdir(parents=True, exist_ok=True)
    stash.write_text(whole[:10])
    one.unstage()
    node.machine.assert_clean()


class Mapped:
    """A mapping of dm-crypt on a real device, arranged as files: its node in /dev, which is mounted, is no device."""

    def __init__(self, sys_block: Path, kit: Kit) -> None:
        self._entry = sys_block / DM.name
        self._name = f"luks-rbd-{kit.volume.volume_id}"
        (self._entry / "dm").mkdir(parents=True)
        (self._entry / "slaves" / Path(kit.loop()).name).mkdir(parents=True)
        for name, text in {"dm/name": self._name, "dm/suspended": "0", "ro": "0"}.items():
            (self._entry / name).write_text(f"{text}\n")
        os.mknod(DM, stat.S_IFBLK | 0o600, os.makedev(253, 977))
        self.run = ScriptedRunner({"cryptsetup": self._cryptsetup})
        self.mappings = Mappings(Luks(self.run), sys_block=sys_block)

    def _cryptsetup(self, command: Command) -> Answer:
        assert command.argv == ("cryptsetup", "close", "--", self._name)
        shutil.rmtree(self._entry)
        DM.unlink()
        return Answer()


class FailsToDetach:
    """The real runner, but for ``losetup --detach``, which fails as often as it is told to."""

    def __init__(self, times: int) -> None:
        self.times = times

    def __call__(self, argv: Sequence[str], **how: Any) -> ProcessResult:
        if "--detach" in argv and self.times:
            self.times -= 1
            raise ProcessError(argv, "no such luck", exit_code=1)
        return run(argv, **how)


@pytest.fixture
def opened(staged: Kit, tmp_path: Path) -> Iterator[Mapped]:
    """A staged volume whose device is a mapping, which is mounted nowhere; of the stash nothing is left."""
    made = Mapped(tmp_path, staged)
    unmount(staged.staged)
    staged.staged.rmdir()
    lose_content(staged.staging / STASH_NAME)
    yield made
    for mount in reversed(mounts_of_device(DM)) if DM.exists() else ():
        unmount(Path(mount.mount_point))
    DM.unlink(missing_ok=True)


@pytest.fixture
def mapped(node: Node, staged: Kit, opened: Mapped, monkeypatch: pytest.MonkeyPatch) -> Mapped:
    """The same, staged as a block volume; nothing but its name and the note is to say what belongs to it."""
    # The kernel has no device of that number.
    monkeypatch.setattr(lost_volumes, "device_of", lambda _: str(DM))
    staged.staged.touch()
    run(["mount", "--bind", str(DM), str(staged.staged)], timeout=20)
    for file in (node.directory / "qemu").glob("*/spec.json"):
        file.unlink()
    return opened


def volumes_of(node: Node, mapped: Mapped, runner: FailsToDetach) -> NodeVolumes:
    attacher = QemuAttacher(run=runner, directory=node.directory / "qemu")
    devices = Devices(Attachers([attacher], default="qemu"), run=mapped.run, mappings=mapped.mappings)
    return NodeVolumes(run=run, devices=devices)


def test_what_is_below_a_mapping_is_taken_away_by_the_next_call_when_it_fails_first(
    node: Node, staged: Kit, mapped: Mapped
) -> None:
    volumes = volumes_of(node, mapped, FailsToDetach(1))
    place = Staging.of(str(staged.staging), staged.volume.volume_id)
    with pytest.raises(CsiError, match="no such luck"):
        volumes.unstage(place)
    assert not DM.exists()
    assert len(node.machine.loops()) == 1
    volumes.unstage(place)
    node.machine.assert_clean()
    assert list(staged.staging.iterdir()) == []


def test_a_mapping_without_stash_and_mount_is_found_by_its_name_and_what_is_below_it_too(
    node: Node, staged: Kit, mapped: Mapped
) -> None:
    unmount(staged.staged)
    volumes = volumes_of(node, mapped, FailsToDetach(1))
    place = Staging.of(str(staged.staging), staged.volume.volume_id)
    with pytest.raises(CsiError, match="no such luck"):
        volumes.unstage(place)
    assert not DM.exists()
    volumes.unstage(place)
    node.machine.assert_clean()


def test_a_mapping_that_another_staging_path_has_mounted_stays_with_what_is_below_it(
    node: Node, staged: Kit, opened: Mapped
) -> None:
    elsewhere = node.directory / "elsewhere"
    elsewhere.touch()
    run(["mount", "--bind", str(DM), str(elsewhere)], timeout=20)
    (staged.staging / STASH_NAME).unlink()
    volumes = volumes_of(node, opened, FailsToDetach(0))
    volumes.unstage(Staging.of(str(staged.staging), staged.volume.volume_id))
    assert DM.exists()
    assert mount_at(elsewhere) is not None
    assert len(node.machine.loops()) == 1


def test_what_an_earlier_call_has_noted_is_forgotten_when_the_volume_is_staged(node: Node) -> None:
    kit = node.make_volume(size_bytes=64 * MIB)
    place = Staging.of(str(kit.staging), kit.volume.volume_id)
    kit.staging.mkdir(parents=True)
    note_devices(place, ["/dev/null"])
    assert noted_devices(place) == ("/dev/null",)
    kit.stage()
    assert noted_devices(place) == ()
