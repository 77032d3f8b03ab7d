"""An xfs whose mkfs was cut off: it has a signature, and nobody can mount it."""

import os

from csi_host.node.mounts import StrPath

_SUPERBLOCK_BYTES = 512
_MAGIC = b"XFSB"
# sb_inprogress: mkfs.xfs sets it with its first writes and clears it with its very last one.
_IN_PROGRESS_OFFSET = 126


def erase_unfinished_xfs(device: StrPath) -> bool:
    """Take away the superblock of an xfs that mkfs did not finish; False, and nothing done, for anything else.

    Only for a caller with a record that its own mkfs was cut off there. A device in use by the kernel is refused by
    the exclusive open with OSError.
    """
    # O_EXCL without O_CREAT has a meaning for block devices only (open(2)).
    descriptor = os.open(device, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    try:
        superblock = os.pread(descriptor, _SUPERBLOCK_BYTES, 0)
        if superblock[: len(_MAGIC)] != _MAGIC or superblock[_IN_PROGRESS_OFFSET : _IN_PROGRESS_OFFSET + 1] != b"\1":
            return False
        os.pwrite(descriptor, bytes(_SUPERBLOCK_BYTES), 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return True
