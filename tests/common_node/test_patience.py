import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from csi_host.process import run
from csi_host_common_node.block import LoopDevices
from csi_host_common_node.filesystem import Blank, Filesystems
from csi_host_common_node.patience import DeviceSilent, Patience
from csi_host_common_node.reading import read_beginning

NAME = "/dev/of-the-test"


def wait_for_looks() -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("look "):
            thread.join(20)


def test_what_is_seen_is_returned_and_what_fails_is_raised() -> None:
    def fail() -> None:
        raise FileNotFoundError("gone")

    patience = Patience()
    assert patience.look(NAME, lambda: 7, at_most=10) == 7
    with pytest.raises(FileNotFoundError, match="gone"):
        patience.look(NAME, fail, at_most=10)
    assert patience.look(NAME, lambda: None, at_most=10) is None


def test_a_device_that_still_owes_an_answer_gets_no_second_thread_and_others_are_looked_at() -> None:
    patience, answers = Patience(), threading.Event()
    with pytest.raises(DeviceSilent, match="has not answered"):
        patience.look(NAME, answers.wait, at_most=0.05)
    before = threading.active_count()
    with pytest.raises(DeviceSilent, match="since it was read last"):
        patience.look(NAME, answers.wait, at_most=10)
    assert threading.active_count() == before
    assert patience.look("/dev/another", lambda: 1, at_most=10) == 1
    answers.set()
    wait_for_looks()
    assert patience.look(NAME, lambda: 2, at_most=10) == 2


@pytest.fixture
def silent_device(fuse_file: Any) -> Any:
    """A loop device whose backend has been stopped, and what wakes it."""
    loops = LoopDevices(run)
    device = loops.attach(fuse_file.path)
    fuse_file.stop()
    yield device, fuse_file.resume
    fuse_file.resume()
    wait_for_looks()
    loops.detach(device)


def test_a_device_whose_backend_hangs_is_given_up_in_time_and_read_when_it_is_back(
    silent_device: tuple[str, Callable[[], None]],
) -> None:
    device, wake = silent_device
    patience = Patience()
    begin = time.monotonic()
    with pytest.raises(DeviceSilent, match=device):
        patience.look(device, lambda: read_beginning(device), at_most=0.5)
    with pytest.raises(DeviceSilent, match="since it was read last"):
        Filesystems(run, patience=patience).content_of(device)
    assert time.monotonic() - begin < 5
    wake()
    wait_for_looks()
    assert Filesystems(run, patience=patience).content_of(device) == Blank()
