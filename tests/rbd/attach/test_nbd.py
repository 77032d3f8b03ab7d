"""What the rbd-nbd mounter makes of sysfs, /proc and programs that fail; the real kernel is in tests/kernel."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from csi_host.errors import Unavailable
from csi_host.process import SECRET_FILE, ProcessTimeout
from csi_host.testing.runner import Answer, Command, ScriptedRunner
from csi_host_rbd.attach.attacher import Attachment, AttachmentLost, AttachRequest, ImageSpec
from csi_host_rbd.attach.client import RbdClient
from csi_host_rbd.attach.kept_requests import KeptRequests
from csi_host_rbd.attach.kernel_modules import ModuleMissing
from csi_host_rbd.attach.nbd import NbdAttacher

KEY = "AQA6fAFrwncNExAAd7IMxMF/byzrFzmGtkQFIw=="
SPEC = ImageSpec(cluster_id="ceph-a", pool="rbd", image="one", namespace="tenant", volume_id="v1")
REQUEST = AttachRequest(spec=SPEC, mon_host="10.0.0.1:6789", user="csi", key=KEY)
DEVICE = "/dev/nbd900"


class Kernel:
    """A /sys and a /proc in which ``rbd-nbd`` maps, attaches and unmaps."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.proc = root / "proc"
        self.proc.mkdir(parents=True)
        (root / "block").mkdir()
        (root / "module/nbd").mkdir(parents=True)
        self.run = ScriptedRunner({"rbd-nbd": self.rbd_nbd, "blockdev": Answer(), "rbd": Answer()})
        self.kept = KeptRequests()
        self.pids = 100

    def attacher(self, kept: KeptRequests | None = None) -> NbdAttacher:
        return NbdAttacher(
            run=self.run,
            client=RbdClient(run=self.run),
            kept=kept or self.kept,
            sysfs=self.root,
            proc=self.proc,
            sockets=self.root / "sockets",
            patience=0,
            pause=lambda _: None,
        )

    def connect(self, pid: int, *, number: int = 900, cookie: str = "v1", size: int = 1 << 20) -> Path:
        block = self.root / f"block/nbd{number}"
        block.mkdir()
        for name, text in {"pid": pid, "ro": 0, "size": size // 512, "backend": cookie}.items():
            (block / name).write_text(f"{text}\n")
        if not cookie:
            (block / "backend").unlink()
        return block

    def start(self, *words: str) -> int:
        self.pids += 1
        (self.proc / str(self.pids)).mkdir()
        (self.proc / str(self.pids) / "cmdline").write_text("\0".join(words) + "\0")
        return self.pids

    def kill(self, pid: int) -> None:
        (self.proc / str(pid) / "cmdline").write_text("")

    def rbd_nbd(self, command: Command) -> Answer:
        if "map" in command.argv:
            self.connect(self.start(*command.argv))
        elif "attach" in command.argv:
            self.start(*command.argv)
        else:
            block = self.root / "block" / Path(command.argv[2]).name
            for file in block.iterdir():
                file.unlink()
            block.rmdir()
        return Answer()


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("rbd-nbd", "rbd", "nsenter", "blockdev"):
        (programs / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(programs))
    return Kernel(tmp_path / "sys")


def test_a_missing_module_is_named(kernel: Kernel) -> None:
    (kernel.root / "module/nbd").rmdir()
    with pytest.raises(ModuleMissing, match="module nbd"):
        kernel.attacher().attach(REQUEST)
    assert kernel.run.ran("rbd-nbd") == []


def test_mapping_says_who_where_and_whose_and_hands_the_key_over_in_memory(kernel: Kernel) -> None:
    assert kernel.attacher().attach(REQUEST) == Attachment(device=DEVICE, read_only=False)
    (command,) = kernel.run.ran("rbd-nbd")
    assert command.argv == (
        *("rbd-nbd", "--conf", "/dev/null", "--id", "csi", "-m", "10.0.0.1:6789", "--keyfile", SECRET_FILE),
        *("--client-mount-timeout=15", "--log-file=", "--pid-file=", "--rados-osd-op-timeout=0", command.argv[13]),
        *("map", "rbd/tenant/one", "--try-netlink", "--reattach-timeout=300", "--io-timeout=0", "--cookie=v1"),
    )
    assert command.argv[13].startswith(f"--admin-socket={kernel.root / 'sockets'}/")
    assert command.secret_file == KEY
    assert kernel.kept.find(SPEC) == REQUEST


def test_a_daemon_writes_the_log_that_is_asked_for_where_it_can(kernel: Kernel) -> None:
    log_file = kernel.root / "logs/one.log"
    kernel.attacher().attach(replace(REQUEST, log_file=log_file))
    assert f"--log-file={log_file}" in kernel.run.ran("rbd-nbd")[0].argv
    kernel.attacher().detach(SPEC)
    log_file.unlink()
    log_file.mkdir()
    kernel.attacher().attach(replace(REQUEST, log_file=log_file))
    assert "--log-file=" in kernel.run.ran("rbd-nbd")[-1].argv


@pytest.mark.parametrize("how", ["by its image", "by its device"])
def test_the_socket_of_a_daemon_goes_with_its_device(kernel: Kernel, how: str) -> None:
    kernel.attacher().attach(REQUEST)
    (word,) = (word for word in kernel.run.ran("rbd-nbd")[0].argv if word.startswith("--admin-socket="))
    socket = Path(word.partition("=")[2])
    socket.touch()
    if how == "by its image":
        kernel.attacher().detach(SPEC)
    else:
        assert kernel.attacher().detach_device(DEVICE)
    assert not socket.exists()


def test_where_there_is_no_place_for_a_socket_it_does_without(kernel: Kernel) -> None:
    (kernel.root / "sockets").touch()
    kernel.attacher().attach(REQUEST)
    assert "--admin-socket=" in kernel.run.ran("rbd-nbd")[0].argv


def test_what_the_class_says_takes_the_place_of_the_defaults(kernel: Kernel) -> None:
    options = "io-timeout=330,reattach-timeout=60,rbd_cache=false"
    kernel.attacher().attach(AttachRequest(spec=SPEC, mon_host="m", user="csi", key=KEY, map_options=options))
    words = kernel.run.ran("rbd-nbd")[0].argv
    assert words[-5:] == (
        *("--io-timeout=330", "--reattach-timeout=60", "--rbd_cache=false", "--try-netlink", "--cookie=v1"),
    )


def test_a_device_is_told_by_its_cookie_also_without_a_daemon(kernel: Kernel) -> None:
    kernel.connect(1, number=901, cookie="v2")
    kernel.connect(1)
    found = kernel.attacher().find(SPEC)
    assert found == Attachment(device=DEVICE, read_only=False, is_alive=False)
    assert sorted(kernel.attacher().dead_cookies()) == ["v1", "v2"]


def test_a_kernel_without_cookies_tells_a_device_by_its_living_daemon(kernel: Kernel) -> None:
    pid = kernel.start("/usr/bin/rbd-nbd", "--id", "csi", "map", "rbd/tenant/one", "--try-netlink")
    kernel.connect(pid, cookie="")
    kernel.connect(kernel.start("/usr/bin/rbd-nbd", "map", "rbd/one"), number=901, cookie="")
    assert kernel.attacher().find(SPEC) == Attachment(device=DEVICE, read_only=False)
    kernel.kill(pid)
    assert kernel.attacher().find(SPEC) is None


def test_a_pid_that_another_volumes_daemon_has_now_is_not_taken_for_this_ones(kernel: Kernel) -> None:
    other = kernel.start("rbd-nbd", "map", "rbd/tenant/two", "--cookie=v2")
    kernel.connect(other)
    found = kernel.attacher().find(SPEC)
    assert found is not None
    assert not found.is_alive


def test_in_a_container_the_pid_is_another_namespaces_and_the_cookie_tells(kernel: Kernel) -> None:
    kernel.start("rbd-nbd", "map", "rbd/tenant/one", "--cookie=v1")
    kernel.connect(4711)
    found = kernel.attacher().find(SPEC)
    assert found is not None
    assert found.is_alive


def test_a_pid_that_another_program_has_now_is_no_daemon(kernel: Kernel) -> None:
    kernel.connect(kernel.start("/usr/bin/vim", "map", "rbd/tenant/one"))
    found = kernel.attacher().find(SPEC)
    assert found is not None
    assert not found.is_alive


def test_a_replaced_daemon_is_known_by_its_command_line(kernel: Kernel) -> None:
    kernel.connect(1)
    for form in (("--device", DEVICE), (f"--device={DEVICE}",)):
        pid = kernel.start("rbd-nbd", "attach", "rbd/tenant/one", *form)
        found = kernel.attacher().find(SPEC)
        assert found is not None
        assert found.is_alive
        kernel.kill(pid)


def test_a_dead_device_gets_a_daemon_with_the_same_cookie(kernel: Kernel) -> None:
    kernel.connect(1)
    assert kernel.attacher().attach(REQUEST).is_alive
    (command,) = kernel.run.ran("rbd-nbd")
    assert command.argv[command.argv.index("attach") :][:4] == ("attach", "rbd/tenant/one", "--device", DEVICE)
    assert "--cookie=v1" in command.argv
    assert command.secret_file == KEY


def test_healing_needs_the_request_and_says_when_it_has_none(kernel: Kernel) -> None:
    kernel.connect(1)
    assert not kernel.attacher().heal(SPEC)
    kernel.kept.keep(REQUEST)
    assert kernel.attacher().heal(SPEC)
    assert kernel.attacher().heal(SPEC)
    assert len(kernel.run.ran("rbd-nbd")) == 1


def test_healing_what_is_not_there_says_so(kernel: Kernel) -> None:
    with pytest.raises(AttachmentLost):
        kernel.attacher().heal(SPEC)


def test_nothing_is_unmapped_that_could_not_be_flushed(kernel: Kernel) -> None:
    kernel.attacher().attach(REQUEST)
    kernel.run.install("blockdev", Answer(hangs=True))
    with pytest.raises(Unavailable, match="not yet in its image"):
        kernel.attacher().detach(SPEC)
    assert kernel.attacher().find(SPEC) is not None
    assert kernel.kept.find(SPEC) is not None
    kernel.run.install("blockdev", Answer())
    kernel.attacher().detach(SPEC)
    assert [command.argv[1] for command in kernel.run.ran("blockdev")] == ["--flushbufs"] * 2
    assert kernel.kept.find(SPEC) is None


def test_a_dead_device_whose_daemon_cannot_be_replaced_is_not_given_up(kernel: Kernel) -> None:
    kernel.connect(1)
    kernel.kept.keep(REQUEST)
    kernel.run.install("rbd-nbd", Answer(hangs=True))
    with pytest.raises(Unavailable, match=f"rbd-nbd unmap {DEVICE}.* by hand gives that up"):
        kernel.attacher().detach(SPEC)
    assert kernel.attacher().find(SPEC) is not None


def test_a_dead_device_of_which_nothing_is_known_is_unmapped(kernel: Kernel) -> None:
    kernel.connect(1)
    kernel.attacher().detach(SPEC)
    assert kernel.attacher().find(SPEC) is None
    assert kernel.run.ran("blockdev") == []


def test_a_device_that_unmapping_does_not_end_is_an_error(kernel: Kernel) -> None:
    kernel.attacher().attach(REQUEST)
    kernel.run.install("rbd-nbd", Answer())
    with pytest.raises(Unavailable, match="still there"):
        kernel.attacher().detach(SPEC)


def test_the_options_for_unmapping_are_given(kernel: Kernel) -> None:
    kernel.attacher().attach(REQUEST)
    kernel.attacher().detach(SPEC, "force,unmap-timeout=3")
    assert kernel.run.ran("rbd-nbd")[-1].argv == ("rbd-nbd", "unmap", DEVICE, "--force", "--unmap-timeout=3")


def test_what_a_map_leaves_that_timed_out_is_taken_away(kernel: Kernel) -> None:
    def too_late(command: Command) -> Answer:
        kernel.rbd_nbd(command)
        return Answer(hangs="map" in command.argv)

    kernel.run.install("rbd-nbd", too_late)
    with pytest.raises(ProcessTimeout) as caught:
        kernel.attacher().attach(REQUEST)
    assert KEY not in str(caught.value)
    assert kernel.attacher().find(SPEC) is None


def test_a_size_that_the_device_does_not_take_is_not_final(kernel: Kernel) -> None:
    """Without a cookie the kernel takes no size from us: rbd-nbd's own must arrive."""
    kernel.connect(kernel.start("rbd-nbd", "map", "rbd/tenant/one"), cookie="")
    assert kernel.attacher().grow(SPEC) == 1 << 20
    with pytest.raises(Unavailable, match="does not show them"):
        kernel.attacher().grow(SPEC, at_least=2 << 20)
    kernel.kept.keep(REQUEST)
    kernel.run.install("rbd", Answer(stdout=json.dumps({"size": 3 << 20})))
    with pytest.raises(Unavailable, match=f"has {3 << 20} bytes"):
        kernel.attacher().grow(SPEC)
    (info,) = kernel.run.ran("rbd")
    assert info.argv[-9:] == (
        *("info", "--pool", "rbd", "--namespace", "tenant", "--image", "one", "--format", "json"),
    )
    (kernel.root / "block/nbd900/size").write_text(f"{(3 << 20) // 512}\n")
    assert kernel.attacher().grow(SPEC) == 3 << 20
