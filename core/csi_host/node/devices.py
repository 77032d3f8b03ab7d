"""What the kernel says of a block device, asked without reading from it."""

import fcntl
import os
import struct
from pathlib import Path

from csi_host.node.mounts import StrPath

_SYS_DEV_BLOCK = Path("/sys/dev/block")
_BLKGETSIZE64 = 0x80081272
_BLKROGET = 0x125E


def device_with(number: str) -> str | None:
    """Return the block device (``/dev/...``, by the kernel's name) with a ``major:minor``, None when there is none."""
    block = _SYS_DEV_BLOCK / number
    return f"/dev/{block.resolve().name}" if block.exists() else None


def size_bytes(device: StrPath) -> int:
    """Return the size of a block device in bytes; raises OSError (ENOTTY for what is no block device)."""
    return int(struct.unpack("Q", _ask(device, _BLKGETSIZE64, bytes(8)))[0])


def is_read_only(device: StrPath) -> bool:
    """Tell whether the kernel refuses writes to a block device; raises OSError."""
    return bool(struct.unpack("i", _ask(device, _BLKROGET, bytes(4)))[0])


def _ask(device: StrPath, request: int, answer: bytes) -> bytes:
    descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return fcntl.ioctl(descriptor, request, answer)
    finally:
        os.close(descriptor)
