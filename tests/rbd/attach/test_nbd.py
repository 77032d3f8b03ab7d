"""What the rbd-nbd mounter makes of sysfs, /proc and programs that fail; the real kernel is in tests/kernel."""

from dataclasses import replace

import pytest

from csi_host.process import SECRET_FILE, ProcessError
from csi_host.testing.runner import Answer, Command
from csi_host_rbd.attach.attacher import Attachment, AttachmentLost, AttachRequest
from csi_host_rbd.attach.kernel_modules import ModuleMissing
from csi_host_rbd.testing.nbd_kernel import DEVICE, KEY, REQUEST, SPEC, NbdKernel


def test_a_missing_module_is_named(nbd_kernel: NbdKernel) -> None:
    (nbd_kernel.root / "module/nbd").rmdir()
    with pytest.raises(ModuleMissing, match="module nbd"):
        nbd_kernel.attacher().attach(REQUEST)
    assert nbd_kernel.run.ran("rbd-nbd") == []


def test_mapping_says_who_where_and_whose_and_hands_the_key_over_in_memory(nbd_kernel: NbdKernel) -> None:
    assert nbd_kernel.attacher().attach(REQUEST) == Attachment(device=DEVICE, read_only=False)
    (command,) = nbd_kernel.run.ran("rbd-nbd")
    assert command.argv == (
        *("rbd-nbd", "--conf", "/dev/null", "--id", "csi", "-m", "10.0.0.1:6789", "--keyfile", SECRET_FILE),
        *("--client-mount-timeout=15", "--log-file=", "--pid-file=", "--rados-osd-op-timeout=0", command.argv[13]),
        *("map", "rbd/tenant/one", "--try-netlink", "--reattach-timeout=300", "--io-timeout=0", "--cookie=v1"),
    )
    assert command.argv[13].startswith(f"--admin-socket={nbd_kernel.root / 'sockets'}/")
    assert command.secret_file == KEY
    assert nbd_kernel.kept.find(SPEC) == REQUEST


def test_a_daemon_writes_the_log_that_is_asked_for_where_it_can(nbd_kernel: NbdKernel) -> None:
    log_file = nbd_kernel.root / "logs/one.log"
    nbd_kernel.attacher().attach(replace(REQUEST, log_file=log_file))
    assert f"--log-file={log_file}" in nbd_kernel.run.ran("rbd-nbd")[0].argv
    nbd_kernel.attacher().detach(SPEC)
    log_file.unlink()
    log_file.mkdir()
    nbd_kernel.attacher().attach(replace(REQUEST, log_file=log_file))
    assert "--log-file=" in nbd_kernel.run.ran("rbd-nbd")[-1].argv


def test_where_there_is_no_place_for_a_socket_it_does_without(nbd_kernel: NbdKernel) -> None:
    (nbd_kernel.root / "sockets").touch()
    nbd_kernel.attacher().attach(REQUEST)
    assert "--admin-socket=" in nbd_kernel.run.ran("rbd-nbd")[0].argv


def test_what_the_class_says_takes_the_place_of_the_defaults(nbd_kernel: NbdKernel) -> None:
    options = "io-timeout=330,reattach-timeout=60,rbd_cache=false"
    nbd_kernel.attacher().attach(AttachRequest(spec=SPEC, mon_host="m", user="csi", key=KEY, map_options=options))
    words = nbd_kernel.run.ran("rbd-nbd")[0].argv
    assert words[-5:] == (
        *("--io-timeout=330", "--reattach-timeout=60", "--rbd_cache=false", "--try-netlink", "--cookie=v1"),
    )


def test_a_device_is_told_by_its_cookie_also_without_a_daemon(nbd_kernel: NbdKernel) -> None:
    nbd_kernel.connect(1, number=901, cookie="v2")
    nbd_kernel.connect(1)
    found = nbd_kernel.attacher().find(SPEC)
    assert found == Attachment(device=DEVICE, read_only=False, is_alive=False)
    assert sorted(nbd_kernel.attacher().dead_cookies()) == ["v1", "v2"]


def test_a_kernel_without_cookies_tells_a_device_by_its_living_daemon(nbd_kernel: NbdKernel) -> None:
    pid = nbd_kernel.start("/usr/bin/rbd-nbd", "--id", "csi", "map", "rbd/tenant/one", "--try-netlink")
    nbd_kernel.connect(pid, cookie="")
    nbd_kernel.connect(nbd_kernel.start("/usr/bin/rbd-nbd", "map", "rbd/one"), number=901, cookie="")
    assert nbd_kernel.attacher().find(SPEC) == Attachment(device=DEVICE, read_only=False)
    nbd_kernel.kill(pid)
    assert nbd_kernel.attacher().find(SPEC) is None


def test_a_pid_that_another_volumes_daemon_has_now_is_not_taken_for_this_ones(nbd_kernel: NbdKernel) -> None:
    other = nbd_kernel.start("rbd-nbd", "map", "rbd/tenant/two", "--cookie=v2")
    nbd_kernel.connect(other)
    found = nbd_kernel.attacher().find(SPEC)
    assert found is not None
    assert not found.is_alive


def test_a_pid_that_another_program_has_now_is_no_daemon(nbd_kernel: NbdKernel) -> None:
    nbd_kernel.connect(nbd_kernel.start("/usr/bin/vim", "map", "rbd/tenant/one"))
    found = nbd_kernel.attacher().find(SPEC)
    assert found is not None
    assert not found.is_alive


def test_looking_for_daemons_does_not_read_the_command_lines_of_others(nbd_kernel: NbdKernel) -> None:
    hung = nbd_kernel.proc / str(nbd_kernel.start("/usr/bin/vim")) / "cmdline"
    hung.unlink()
    hung.mkdir()
    assert nbd_kernel.attacher().attach(REQUEST).is_alive


def test_a_replaced_daemon_is_known_by_its_command_line(nbd_kernel: NbdKernel) -> None:
    nbd_kernel.connect(1)
    for form in (("--device", DEVICE), (f"--device={DEVICE}",)):
        pid = nbd_kernel.start("rbd-nbd", "attach", "rbd/tenant/one", *form)
        found = nbd_kernel.attacher().find(SPEC)
        assert found is not None
        assert found.is_alive
        nbd_kernel.kill(pid)


def test_a_dead_device_gets_a_daemon_with_the_same_cookie(nbd_kernel: NbdKernel) -> None:
    nbd_kernel.connect(1)
    assert nbd_kernel.attacher().attach(REQUEST).is_alive
    (command,) = nbd_kernel.run.ran("rbd-nbd")
    assert command.argv[command.argv.index("attach") :][:4] == ("attach", "rbd/tenant/one", "--device", DEVICE)
    assert "--cookie=v1" in command.argv
    assert command.secret_file == KEY


def test_the_key_is_kept_before_there_is_a_device_and_not_after_a_map_that_failed(nbd_kernel: NbdKernel) -> None:
    def refusing(_: Command) -> Answer:
        assert nbd_kernel.kept.find(SPEC) == REQUEST
        return Answer(exit_code=1)

    nbd_kernel.run.install("rbd-nbd", refusing)
    with pytest.raises(ProcessError):
        nbd_kernel.attacher().attach(REQUEST)
    assert nbd_kernel.kept.find(SPEC) is None


def test_healing_needs_the_request_and_says_when_it_has_none(nbd_kernel: NbdKernel) -> None:
    nbd_kernel.connect(1)
    assert not nbd_kernel.attacher().heal(SPEC)
    nbd_kernel.kept.keep(REQUEST)
    assert nbd_kernel.attacher().heal(SPEC)
    assert nbd_kernel.attacher().heal(SPEC)
    assert len(nbd_kernel.run.ran("rbd-nbd")) == 1


def test_healing_what_is_not_there_says_so(nbd_kernel: NbdKernel) -> None:
    with pytest.raises(AttachmentLost):
        nbd_kernel.attacher().heal(SPEC)


@pytest.mark.parametrize("is_alive", [True, False])
def test_what_is_connected_is_told_and_of_a_dead_device_that_nothing_was_kept_of_the_volume(
    nbd_kernel: NbdKernel, *, is_alive: bool
) -> None:
    nbd_kernel.attacher().attach(REQUEST)
    if not is_alive:
        nbd_kernel.kill(nbd_kernel.pids)
    nbd_kernel.connect(1, number=901, cookie="v2")
    nbd_kernel.connect(nbd_kernel.start("rbd-nbd", "map", "rbd/three", "--cookie=v3"), number=902, cookie="v3")
    found = nbd_kernel.attacher().attached()
    told = [(str(spec), spec.volume_id) for spec in found]
    assert told == [("rbd/tenant/one", "v1"), ("", "v2"), ("rbd/three", "v3")]
    assert found[0].cluster_id == "ceph-a"
    for spec in found:
        nbd_kernel.attacher().detach(spec)
    assert nbd_kernel.attacher().attached() == []
