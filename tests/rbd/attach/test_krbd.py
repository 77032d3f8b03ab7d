"""What the rbd mounter makes of the kernel's answers and of programs that fail; the real kernel is in tests/kernel."""

from pathlib import Path

import pytest

from csi_host.errors import Unavailable
from csi_host.process import SECRET_FILE, ProcessError, ProcessTimeout
from csi_host.testing.runner import Answer, Command, ScriptedRunner
from csi_host_rbd.attach.attacher import Attachment, AttachmentLost, AttachRequest, DeviceInUse, ImageSpec
from csi_host_rbd.attach.cleanup import LeftBehind
from csi_host_rbd.attach.client import NetworkNamespaceMissing, RbdClient
from csi_host_rbd.attach.kernel_modules import ModuleMissing
from csi_host_rbd.attach.krbd import AmbiguousDevice, KrbdAttacher

KEY = "AQA6fAFrwncNExAAd7IMxMF/byzrFzmGtkQFIw=="
SPEC = ImageSpec(cluster_id="ceph-a", pool="rbd", image="one", volume_id="v1", fsid="fsid-a")
REQUEST = AttachRequest(spec=SPEC, mon_host="10.0.0.1:6789", user="csi", key=KEY)


class Kernel:
    """A /sys in which ``rbd`` maps and unmaps, as far as this kernel lets it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bus = root / "bus/rbd"
        self.run = ScriptedRunner({"rbd": self.rbd, "tee": Answer(), "modprobe": Answer(exit_code=1)})
        self.busy_for = 0
        self.slept: list[float] = []

    def load(self) -> None:
        (self.bus / "devices").mkdir(parents=True)
        (self.bus / "supported_features").write_text("0x1bf\n")

    def attacher(self, **changes: object) -> KrbdAttacher:
        values: dict[str, object] = {
            "run": self.run,
            "client": RbdClient(run=self.run),
            "sysfs": self.root,
            "pause": self.slept.append,
            "patience": 0.2,
        }
        return KrbdAttacher(**{**values, **changes})  # type: ignore[arg-type]  # the defaults, one of them changed

    def add(self, number: int, *, read_only: bool = False, **changes: str) -> None:
        values = {"pool": "rbd", "pool_ns": "", "name": "one", "current_snap": "-", "cluster_fsid": "fsid-a"}
        entry = self.bus / "devices" / str(number)
        entry.mkdir()
        for name, text in {**values, "size": str(1 << 20), **changes}.items():
            (entry / name).write_text(f"{text}\n")
        block = self.root / f"block/rbd{number}"
        block.mkdir(parents=True)
        (block / "ro").write_text(f"{int(read_only)}\n")
        (block / "size").write_text(f"{int(changes.get('size', 1 << 20)) // 512}\n")

    def rbd(self, command: Command) -> Answer:
        if "map" in command.argv:
            self.add(0, read_only="--read-only" in command.argv)
            return Answer(stdout="/dev/rbd0\n")
        if self.busy_for:
            self.busy_for -= 1
            return Answer(exit_code=16, stderr="rbd: sysfs write failed")
        number = command.argv[2].removeprefix("/dev/rbd")
        for place in (self.bus / "devices" / number, self.root / f"block/rbd{number}"):
            for file in place.iterdir():
                file.unlink()
            place.rmdir()
        return Answer()


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel(tmp_path / "sys")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("rbd", "nsenter", "tee"):
        (programs / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(programs))
    return made


@pytest.fixture
def loaded(kernel: Kernel) -> Kernel:
    kernel.load()
    return kernel


def test_the_module_is_loaded_once_and_named_when_it_cannot_be(kernel: Kernel) -> None:
    attacher = kernel.attacher()
    for _ in range(2):
        with pytest.raises(ModuleMissing, match=r"module rbd .*linux-image-amd64.*mounter: qemu"):
            attacher.check()
    assert [command.argv for command in kernel.run.ran("modprobe")] == [("modprobe", "rbd")]
    kernel.load()
    attacher.check()


def test_a_module_that_can_be_loaded_is(kernel: Kernel) -> None:
    def modprobe(command: Command) -> Answer:
        assert command.argv == ("modprobe", "rbd")
        kernel.load()
        return Answer()

    kernel.run.install("modprobe", modprobe)
    kernel.attacher().check()


def test_mapping_says_who_and_where_and_hands_the_key_over_in_memory(loaded: Kernel) -> None:
    made = loaded.attacher(extra_options=lambda _: "read_from_replica=localize,crush_location=zone:a").attach(REQUEST)
    assert made == Attachment(device="/dev/rbd0", read_only=False)
    (command,) = loaded.run.ran("rbd")
    assert command.argv == (
        *("rbd", "--conf", "/dev/null", "--id", "csi", "-m", "10.0.0.1:6789", "--keyfile", SECRET_FILE),
        *("--client-mount-timeout=15", "map", "--pool", "rbd", "--image", "one", "--device-type", "krbd"),
        *("--options", "noudev,read_from_replica=localize,crush_location=zone:a"),
    )
    assert command.secret_file == KEY


def test_a_class_that_names_its_own_read_affinity_has_the_last_word(loaded: Kernel) -> None:
    request = AttachRequest(spec=SPEC, mon_host="m", user="csi", key=KEY, map_options="read_from_replica=balance")
    loaded.attacher(extra_options=lambda _: "read_from_replica=localize").attach(request)
    assert "noudev,read_from_replica=balance" in loaded.run.ran("rbd")[0].argv


def test_the_clusters_network_namespace_is_entered_for_mapping_and_has_to_be_there(
    loaded: Kernel, tmp_path: Path
) -> None:
    namespace = tmp_path / "net"
    request = AttachRequest(spec=SPEC, mon_host="m", user="csi", key=KEY, network_namespace=namespace)
    with pytest.raises(NetworkNamespaceMissing, match=f"netNamespaceFilePath: {namespace} is not there"):
        loaded.attacher().attach(request)
    namespace.touch()
    loaded.run.install("nsenter", loaded.rbd)
    loaded.attacher().attach(request)
    assert loaded.run.ran("nsenter")[0].argv[:4] == ("nsenter", f"--net={namespace}", "--", "rbd")


def test_only_the_image_itself_is_found(loaded: Kernel) -> None:
    loaded.add(0, cluster_fsid="fsid-b")
    loaded.add(1, pool_ns="tenant")
    loaded.add(2, current_snap="then")
    loaded.add(3, name="one-temp")
    attacher = loaded.attacher()
    assert attacher.find(SPEC) is None
    loaded.add(10)
    loaded.add(4, read_only=True)
    assert attacher.find(SPEC) == Attachment(device="/dev/rbd4", read_only=True)


def test_entries_that_go_while_we_look_are_passed_over(loaded: Kernel) -> None:
    (loaded.bus / "devices/0").mkdir()
    loaded.add(1)
    found = loaded.attacher().find(SPEC)
    assert found is not None
    assert found.device == "/dev/rbd1"


def test_two_clusters_with_a_name_in_common_are_never_guessed_between(loaded: Kernel) -> None:
    loaded.add(0)
    loaded.add(1, cluster_fsid="fsid-b")
    unknown = ImageSpec(cluster_id="", pool="rbd", image="one")
    attacher = loaded.attacher()
    for act in (attacher.find, attacher.detach, attacher.grow):
        with pytest.raises(AmbiguousDevice, match=r"/dev/rbd0 of cluster fsid-a, /dev/rbd1 of cluster fsid-b"):
            act(unknown)
    assert loaded.run.ran("rbd") == []
    attacher.detach(SPEC)
    assert attacher.find(unknown) == Attachment(device="/dev/rbd1", read_only=False)


def test_a_device_that_is_busy_for_a_moment_is_unmapped(loaded: Kernel) -> None:
    loaded.add(0)
    loaded.busy_for = 2
    loaded.attacher(patience=60).detach(SPEC, "force")
    assert len(loaded.slept) == 2
    assert loaded.run.ran("rbd")[-1].argv == (
        *("rbd", "unmap", "/dev/rbd0", "--device-type", "krbd", "--options", "noudev,force"),
    )


def test_a_device_that_stays_busy_stays_and_that_is_not_final(loaded: Kernel) -> None:
    loaded.add(0)
    loaded.busy_for = 1000
    with pytest.raises(DeviceInUse, match="/dev/rbd0 cannot be unmapped, it is in use"):
        loaded.attacher(patience=0).detach(SPEC)
    assert loaded.attacher().find(SPEC) is not None


def test_an_unmap_that_fails_otherwise_or_hangs_is_not_repeated(loaded: Kernel) -> None:
    loaded.add(0)
    loaded.run.install("rbd", Answer(exit_code=30, stderr="Read-only file system"))
    with pytest.raises(ProcessError, match="Read-only"):
        loaded.attacher().detach(SPEC)
    loaded.run.install("rbd", Answer(hangs=True))
    with pytest.raises(ProcessTimeout):
        loaded.attacher().detach(SPEC)
    assert len(loaded.run.ran("rbd")) == 2


def test_an_unmap_that_somebody_else_was_faster_with_is_fine(loaded: Kernel) -> None:
    loaded.add(0)

    def faster(command: Command) -> Answer:
        loaded.rbd(command)
        return Answer(exit_code=22, stderr="rbd: '/dev/rbd0' is not a block device")

    loaded.run.install("rbd", faster)
    loaded.attacher().detach(SPEC)


def test_what_a_map_leaves_that_timed_out_is_taken_away(loaded: Kernel) -> None:
    def too_late(command: Command) -> Answer:
        answer = loaded.rbd(command)
        return Answer(hangs=True) if "map" in command.argv else answer

    loaded.run.install("rbd", too_late)
    with pytest.raises(ProcessTimeout) as caught:
        loaded.attacher().attach(REQUEST)
    assert KEY not in str(caught.value)
    assert loaded.attacher().find(SPEC) is None


def test_what_cannot_be_taken_away_makes_the_error_one_that_is_asked_again(loaded: Kernel) -> None:
    def broken(command: Command) -> Answer:
        if "map" in command.argv:
            loaded.rbd(command)
        return Answer(exit_code=5, stderr="I/O error")

    loaded.run.install("rbd", broken)
    with pytest.raises(LeftBehind):
        loaded.attacher().attach(REQUEST)


def test_a_map_that_shows_no_device_is_not_final(loaded: Kernel) -> None:
    loaded.run.install("rbd", Answer(stdout="/dev/rbd0\n"))
    with pytest.raises(Unavailable, match="ask again"):
        loaded.attacher().attach(REQUEST)


def test_the_image_is_looked_at_afresh_before_its_size_is_said(loaded: Kernel) -> None:
    loaded.add(3)

    def refresh(command: Command) -> Answer:
        assert command.stdin == "1"
        (loaded.bus / "devices/3/size").write_text(f"{4 << 20}\n")
        (loaded.root / "block/rbd3/size").write_text(f"{(4 << 20) // 512}\n")
        return Answer()

    loaded.run.install("tee", refresh)
    assert loaded.attacher().grow(SPEC) == 4 << 20
    assert loaded.run.ran("tee")[0].argv == ("tee", str(loaded.bus / "devices/3/refresh"))
    (loaded.root / "block/rbd3/size").write_text("1\n")
    loaded.run.install("tee", Answer())
    with pytest.raises(Unavailable, match="ask again"):
        loaded.attacher().grow(SPEC)


def test_growing_what_is_not_mapped_says_so(loaded: Kernel) -> None:
    with pytest.raises(AttachmentLost):
        loaded.attacher().grow(SPEC)
