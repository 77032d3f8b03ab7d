"""What the kernel says of a block device, asked without reading from it."""

import fcntl
import os
import struct

from csi_host.node.mounts import StrPath

_BLKGETSIZE64 = 0x80081272
_BLKROGET = 0x125E


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
