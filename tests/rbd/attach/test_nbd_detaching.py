"""How a network block device is taken away, and when not; the real kernel is in tests/kernel."""

from pathlib import Path

import pytest

from csi_host.errors import Unavailable
from csi_host.process import ProcessTimeout
from csi_host.testing.runner import Answer, Command
from csi_host_rbd.testing.nbd_kernel import DEVICE, KEY, REQUEST, SPEC, NbdKernel


@pytest.mark.parametrize("how", ["by its image", "by its device"])
def test_the_socket_of_a_daemon_goes_with_its_device(nbd_kernel: NbdKernel, how: str) -> None:
    nbd_kernel.attacher().attach(REQUEST)
    (word,) = (word for word in nbd_kernel.run.ran("rbd-nbd")[0].argv if word.startswith("--admin-socket="))
    socket = Path(word.partition("=")[2])
    socket.touch()
    if how == "by its image":
        nbd_kernel.attacher().detach(SPEC)
    else:
        assert nbd_kernel.attacher().detach_device(DEVICE)
    assert not socket.exists()


def test_nothing_is_unmapped_that_could_not_be_flushed(nbd_kernel: NbdKernel) -> None:
    nbd_kernel.attacher().attach(REQUEST)
    nbd_kernel.run.install("blockdev", Answer(hangs=True))
    with pytest.raises(Unavailable, match="not yet in its image"):
        nbd_kernel.attacher().detach(SPEC)
    assert nbd_kernel.attacher().find(SPEC) is not None
    assert nbd_kernel.kept.find(SPEC) is not None
    nbd_kernel.run.install("blockdev", Answer())
    nbd_kernel.attacher().detach(SPEC)
    assert [command.argv[1] for command in nbd_kernel.run.ran("blockdev")] == ["--flushbufs"] * 2
    assert nbd_kernel.kept.find(SPEC) is None


def test_a_dead_device_whose_daemon_cannot_be_replaced_is_not_given_up(nbd_kernel: NbdKernel) -> None:
    nbd_kernel.connect(1)
    nbd_kernel.kept.keep(REQUEST)
    nbd_kernel.run.install("rbd-nbd", Answer(hangs=True))
    with pytest.raises(Unavailable, match=f"rbd-nbd unmap {DEVICE}.* by hand gives that up"):
        nbd_kernel.attacher().detach(SPEC)
    assert nbd_kernel.attacher().find(SPEC) is not None


def test_a_dead_device_of_which_nothing_is_known_is_unmapped(nbd_kernel: NbdKernel) -> None:
    nbd_kernel.connect(1)
    nbd_kernel.attacher().detach(SPEC)
    assert nbd_kernel.attacher().find(SPEC) is None
    assert nbd_kernel.run.ran("blockdev") == []


def test_a_device_that_unmapping_does_not_end_is_an_error(nbd_kernel: NbdKernel) -> None:
    nbd_kernel.attacher().attach(REQUEST)
    nbd_kernel.run.install("rbd-nbd", Answer())
    with pytest.raises(Unavailable, match="still there"):
        nbd_kernel.attacher().detach(SPEC)


def test_the_options_for_unmapping_are_given(nbd_kernel: NbdKernel) -> None:
    nbd_kernel.attacher().attach(REQUEST)
    nbd_kernel.attacher().detach(SPEC, "force,unmap-timeout=3")
    assert nbd_kernel.run.ran("rbd-nbd")[-1].argv == ("rbd-nbd", "unmap", DEVICE, "--force", "--unmap-timeout=3")


def test_what_a_map_leaves_that_timed_out_is_taken_away(nbd_kernel: NbdKernel) -> None:
    def too_late(command: Command) -> Answer:
        nbd_kernel.rbd_nbd(command)
        return Answer(hangs="map" in command.argv)

    nbd_kernel.run.install("rbd-nbd", too_late)
    with pytest.raises(ProcessTimeout) as caught:
        nbd_kernel.attacher().attach(REQUEST)
    assert KEY not in str(caught.value)
    assert nbd_kernel.attacher().find(SPEC) is None


def test_a_dead_device_that_is_detached_by_its_name_is_revived_flushed_and_forgotten(nbd_kernel: NbdKernel) -> None:
    nbd_kernel.attacher().attach(REQUEST)
    nbd_kernel.kill(nbd_kernel.pids)
    assert nbd_kernel.attacher().detach_device(DEVICE)
    assert [command.argv[0] for command in nbd_kernel.run.commands] == ["rbd-nbd", "rbd-nbd", "blockdev", "rbd-nbd"]
    assert "attach" in nbd_kernel.run.commands[1].argv
    assert nbd_kernel.attacher().find(SPEC) is None
    assert nbd_kernel.kept.find(SPEC) is None


def test_a_dead_device_whose_name_is_all_that_is_known_is_unmapped(nbd_kernel: NbdKernel) -> None:
    nbd_kernel.connect(1)
    assert nbd_kernel.attacher().detach_device(DEVICE)
    assert [command.argv[:2] for command in nbd_kernel.run.commands] == [("rbd-nbd", "unmap")]
