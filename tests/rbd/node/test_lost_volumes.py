"""Which of the kernel's mapped images belong to a volume of which no stash says what it is; /sys is arranged here."""

from dataclasses import replace
from pathlib import Path

import pytest

from csi_host.process import run
from csi_host.testing.runner import Answer, Command, ScriptedRunner
from csi_host_rbd.attach.client import RbdClient
from csi_host_rbd.attach.krbd import KrbdAttacher
from csi_host_rbd.attach.registry import Attachers
from csi_host_rbd.node import lost_volumes
from csi_host_rbd.node.devices import Devices
from csi_host_rbd.node.lost_volumes import VolumeAmbiguous
from csi_host_rbd.node.staging import Staging
from csi_host_rbd.node.stash import STASH_NAME
from csi_host_rbd.node.volumes import NodeVolumes
from csi_host_rbd.testing.nbd_kernel import REQUEST, NbdKernel

UUID = "2a7c9c3e-0d5f-4c0e-9a52-6f0b7a1d9e11"
OTHER = "5f0b7a1d-9e11-4c0e-9a52-2a7c9c3e0d5f"
HANDLE = f"0001-0006-ceph-a-0000000000000003-{UUID}"
MIGRATED = f"mig_mons-b7f67366bb43f32e07d8a261a7840da9_image-{OTHER}_7265706c696361706f6f6c"


class Kernel:
    """A /sys with mapped images, which ``rbd unmap`` takes away; the devices have no files, as nobody uses them."""

    def __init__(self, root: Path) -> None:
        self._devices = root / "bus/rbd/devices"
        self._devices.mkdir(parents=True)
        self.run = ScriptedRunner({"rbd": self._unmap})
        krbd = KrbdAttacher(run=self.run, client=RbdClient(run=self.run), sysfs=root)
        self.volumes = NodeVolumes(run=run, devices=Devices(Attachers([krbd], default="rbd"), run=self.run))

    def map(self, number: int, image: str, *, pool: str = "rbd", fsid: str = "fsid-a", snapshot: str = "-") -> None:
        entry = self._devices / str(number)
        entry.mkdir()
        values = {"pool": pool, "pool_ns": "", "name": image, "current_snap": snapshot, "cluster_fsid": fsid}
        for name, text in {**values, "size": "1048576"}.items():
            (entry / name).write_text(f"{text}\n")

    def mapped(self) -> list[int]:
        return sorted(int(entry.name) for entry in self._devices.iterdir())

    def _unmap(self, command: Command) -> Answer:
        assert command.argv[1] == "unmap"
        entry = self._devices / command.argv[2].removeprefix("/dev/rbd")
        for file in entry.iterdir():
            file.unlink()
        entry.rmdir()
        return Answer()


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path / "sys")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    place = tmp_path / "globalmount"
    place.mkdir()
    return place


def spoil(directory: Path) -> None:
    (directory / STASH_NAME).write_bytes(b"")


@pytest.mark.parametrize(
    ("volume_id", "pool", "image"),
    [
        (HANDLE, "rbd", f"csi-vol-{UUID}"),
        (HANDLE, "another", f"prefix-of-a-class-{UUID}"),
        ("by-hand", "rbd", "by-hand"),
        (MIGRATED, "replicapool", f"kubernetes-dynamic-pvc-{OTHER}"),
    ],
)
def test_the_image_is_told_by_its_name_and_every_other_stays(
    kernel: Kernel, directory: Path, volume_id: str, pool: str, image: str
) -> None:
    kernel.map(0, f"csi-vol-{OTHER}")
    kernel.map(1, f"csi-vol-{UUID}-temp")
    kernel.map(2, image, pool=pool)
    kernel.map(3, image, pool=pool, snapshot="backup")
    kernel.map(4, f"{image}-copy", pool=pool)
    spoil(directory)
    kernel.volumes.unstage(Staging.of(str(directory), volume_id))
    assert kernel.mapped() == [0, 1, 3, 4]
    assert list(directory.iterdir()) == []


def test_an_image_that_is_mapped_twice_is_unmapped_twice(kernel: Kernel, directory: Path) -> None:
    for number in (1, 2):
        kernel.map(number, f"csi-vol-{UUID}")
    spoil(directory)
    kernel.volumes.unstage(Staging.of(str(directory), HANDLE))
    assert kernel.mapped() == []


@pytest.mark.parametrize("other", [{"fsid": "fsid-b"}, {"pool": "mirror"}])
def test_of_several_images_none_is_touched_and_all_are_named(
    kernel: Kernel, directory: Path, other: dict[str, str]
) -> None:
    kernel.map(0, f"csi-vol-{UUID}")
    kernel.map(1, f"csi-vol-{UUID}", **other)
    spoil(directory)
    with pytest.raises(VolumeAmbiguous, match=f"rbd/csi-vol-{UUID} of cluster fsid-a.*by hand"):
        kernel.volumes.unstage(Staging.of(str(directory), HANDLE))
    assert kernel.mapped() == [0, 1]
    assert (directory / STASH_NAME).exists()
    (directory / STASH_NAME).unlink()
    # Without a trace of a staging it is the usual call for a volume that is gone.
    kernel.volumes.unstage(Staging.of(str(directory), HANDLE))
    assert kernel.mapped() == [0, 1]


@pytest.mark.parametrize(
    ("volume_id", "image"),
    [
        (HANDLE, f"csi-vol-{UUID}"),
        ("by-hand", "by-hand"),
        (MIGRATED, f"kubernetes-dynamic-pvc-{OTHER}"),
    ],
)
def test_without_a_trace_of_a_staging_no_image_is_looked_for_by_its_name(
    kernel: Kernel, directory: Path, volume_id: str, image: str
) -> None:
    kernel.map(0, image, pool="replicapool")
    directory.rmdir()
    kernel.volumes.unstage(Staging.of(str(directory), volume_id))
    assert kernel.mapped() == [0]


def test_of_several_images_with_an_administrators_name_none_is_touched_and_the_volume_is_gone(
    kernel: Kernel, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kernel.map(0, "by-hand")
    kernel.map(1, "by-hand", pool="another")
    spoil(directory)
    kernel.volumes.unstage(Staging.of(str(directory), "by-hand"))
    assert kernel.mapped() == [0, 1]
    assert list(directory.iterdir()) == []
    assert "another/by-hand of cluster fsid-a, rbd/by-hand of cluster fsid-a" in caplog.text


def test_an_image_with_an_administrators_name_that_somebody_uses_stays(
    kernel: Kernel, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lost_volumes, "holders_of", lambda device: [f"somebody who has {device}"])
    kernel.map(0, "by-hand")
    spoil(directory)
    kernel.volumes.unstage(Staging.of(str(directory), "by-hand"))
    assert kernel.mapped() == [0]
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("is_spoilt", [True, False], ids=["damaged", "gone"])
def test_a_network_block_device_that_has_lost_its_daemon_gets_one_to_write_what_is_not_yet_written(
    nbd_kernel: NbdKernel, directory: Path, *, is_spoilt: bool
) -> None:
    request = replace(REQUEST, spec=replace(REQUEST.spec, image=f"csi-vol-{UUID}", volume_id=HANDLE))
    nbd_kernel.attacher().attach(request)
    nbd_kernel.kill(nbd_kernel.pids)
    nbd_kernel.connect(1, number=901, cookie="another")
    if is_spoilt:
        spoil(directory)
    nbd_kernel.run.commands.clear()
    nbd = nbd_kernel.attacher()
    volumes = NodeVolumes(run=run, devices=Devices(Attachers([nbd], default="rbd-nbd"), run=nbd_kernel.run))
    volumes.unstage(Staging.of(str(directory), HANDLE))
    revived, flushed, unmapped = nbd_kernel.run.commands
    assert (revived.argv[0], "attach" in revived.argv, str(request.spec) in revived.argv) == ("rbd-nbd", True, True)
    assert revived.secret_file == request.key
    assert flushed.argv[:2] == ("blockdev", "--flushbufs")
    assert unmapped.argv[:2] == ("rbd-nbd", "unmap")
    assert [spec.volume_id for spec in nbd.attached()] == ["another"]
    assert nbd_kernel.kept.find(request.spec) is None
