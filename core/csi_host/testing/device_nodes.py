"""Nodes of block devices under names of their own, and loop devices whose node and number go, for tests as root."""

import fcntl
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LOOP_CLR_FD = 0x4C01
_LOOP_CTL_ADD, _LOOP_CTL_REMOVE = 0x4C80, 0x4C81


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


def add_loop_device(number: int) -> str:
    """Make the loop device of a number, without a file; raises OSError (EEXIST) when there is one."""
    _control(_LOOP_CTL_ADD, number)
    return f"/dev/loop{number}"


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
