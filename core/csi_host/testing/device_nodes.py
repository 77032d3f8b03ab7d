"""Nodes of block devices under names of their own, and loop devices whose node and number go, for tests as root."""

import fcntl
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LOOP_CLR_FD = 0x4C01
_LOOP_CTL_ADD, _LOOP_CTL_REMOVE = 0x4C80, 0x4C81
_LEAST_NUMBER, _NUMBERS = 1000, 100_000


@contextmanager
def another_node(device: str) -> Iterator[Path]:
    """Make a node of the device beside the kernel's own one, as libdevmapper has them below /dev/mapper."""
    directory = Path("/dev") / f"csi-host-{uuid.uuid4()}"
    directory.mkdir()
    node = directory / "node"
    os.mknod(node, stat.S_IFBLK | 0o600, Path(device).stat().st_rdev)
    try:
        yield node
    finally:
        node.unlink(missing_ok=True)
        directory.rmdir()


@contextmanager
def spare_loop_device() -> Iterator[str]:
    """Make a loop device without a file, of a number that nobody comes upon soon; gone afterwards if it still is here.

    While it is free, a loop device that was removed is not made anew for whoever looks for one.
    """
    number = _LEAST_NUMBER + uuid.uuid4().int % _NUMBERS
    _control(_LOOP_CTL_ADD, number)
    device = f"/dev/loop{number}"
    try:
        yield device
    finally:
        # Its test may have removed it, and another may have come upon it after all.
        with suppress(OSError):
            _control(_LOOP_CTL_REMOVE, number)


def remove_loop_device(device: str) -> None:
    """Take the file off a loop device, and then the device and its node away; raises OSError (EBUSY) while it is open.

    A bind mount of the node does not hold the device: it stays, and leads nowhere.
    """
    with Path(device).open("rb", buffering=0) as opened:
        fcntl.ioctl(opened, _LOOP_CLR_FD)
    _control(_LOOP_CTL_REMOVE, int(device.removeprefix("/dev/loop")))


def _control(request: int, number: int) -> None:
    with Path("/dev/loop-control").open("r+b", buffering=0) as control:
        fcntl.ioctl(control, request, number)
