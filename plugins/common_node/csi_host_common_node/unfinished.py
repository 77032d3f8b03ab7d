"""An xfs whose mkfs was cut off: it has a signature, and nobody can mount it.

The device may stop answering at any byte. It is read with patience, and written to by a program, which is killed when
its time is up: a write of our own thread could be neither waited for nor taken back.
"""

import os

from csi_host.node.mounts import StrPath
from csi_host.process import ProcessError, Runner
from csi_host.request import seconds_for
from csi_host_common_node.patience import Patience
from csi_host_common_node.programs import require
from csi_host_common_node.reading import DeviceReader, DeviceUnclear

_MAGIC = b"XFSB"
# sb_inprogress: mkfs.xfs sets it with its first writes and clears it with its very last one.
_IN_PROGRESS_OFFSET = 126
# The largest logical block that O_DIRECT may ask to be aligned to.
_READ_BYTES = 4096
_SECONDS = 30.0


def erase_unfinished_xfs(device: StrPath, *, run: Runner, patience: Patience) -> bool:
    """Take away the signature of an xfs that mkfs did not finish; False, and nothing done, for anything else.

    Only for a caller with a record that its own mkfs was cut off there. A device in use by the kernel is refused by
    exclusive opens. Raises DeviceUnclear, DeviceSilent, and ProcessTimeout when it stopped answering meanwhile.
    """
    name = os.fspath(device)
    superblock = patience.look(name, lambda: _read_beginning(name), at_most=_SECONDS)
    if superblock[: len(_MAGIC)] != _MAGIC or superblock[_IN_PROGRESS_OFFSET : _IN_PROGRESS_OFFSET + 1] != b"\1":
        return False
    require(["wipefs"])
    timeout = seconds_for(f"erasing the unfinished xfs on {name}", at_most=_SECONDS)
    try:
        run(["wipefs", "--all", "--types", "xfs", "--", name], timeout=timeout)
    except ProcessError as error:
        if error.timed_out:
            raise
        raise DeviceUnclear(
            f"{name} holds an xfs whose mkfs was cut off, and it cannot be erased: {error}. Look whether what serves "
            "the device is well; the volume is tried again"
        ) from error
    return True


def _read_beginning(device: str) -> bytes:
    with DeviceReader(device, exclusive=True) as reader:
        return reader.read(0, min(reader.size_bytes, _READ_BYTES))
