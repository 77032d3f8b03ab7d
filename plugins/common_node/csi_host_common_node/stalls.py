"""Whether a block device still completes what it is given, as the kernel's own counters say: nothing is read from it.

A filesystem answers statfs from memory while its device has been silent for minutes. The counters (the kernel's
Documentation/block/stat) cost nothing and cannot hang; an idle device is well as far as anybody can tell. They do not
count a flush that is under way, which is all that a device with a cache of its own may be waiting for.
"""

import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from csi_host.node.mounts import Mount, mount_at

_SYS_DEV_BLOCK = Path("/sys/dev/block")
_SYS_CLASS_BLOCK = Path("/sys/class/block")
_PAUSE_SECONDS = 0.1
# Fields of the stat file: how many requests are at work, and how many reads, writes, discards and flushes are done.
_AT_WORK = 8
_DONE = (0, 4, 11, 15)


@dataclass(frozen=True, kw_only=True)
class _Counters:
    at_work: int
    done: int


def stalled(number: str, *, seconds: float, pause: Callable[[float], None] = time.sleep) -> bool:
    """Tell whether the device ``number`` (``major:minor``) has work and completes none of it for ``seconds``.

    Returns at once for a device that is idle or gone, and as soon as something is completed.
    """
    first = _counters(number)
    until = time.monotonic() + seconds
    while (now := _counters(number)) is not None and first is not None and now.at_work and now.done == first.done:
        if time.monotonic() >= until:
            return True
        pause(_PAUSE_SECONDS)
    return False


def number_below(volume_path: Path) -> str:
    """Return the ``major:minor`` of a block device, or of the one below a mounted filesystem; "" without either."""
    found = volume_path.stat()
    if stat.S_ISBLK(found.st_mode):
        return f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
    mount = mount_at(volume_path)
    return device_number(mount) if mount is not None else ""


def device_number(mount: Mount) -> str:
    """Return the ``major:minor`` of the device below a mounted filesystem, without touching the filesystem."""
    if (_SYS_DEV_BLOCK / mount.device).exists():
        return mount.device
    # btrfs hides its device behind a number of its own.
    node = _SYS_CLASS_BLOCK / Path(mount.source).name / "dev"
    try:
        return node.read_text(encoding="ascii").strip()
    except OSError:
        return mount.device


def _counters(number: str) -> _Counters | None:
    try:
        fields = [int(field) for field in (_SYS_DEV_BLOCK / number / "stat").read_text(encoding="ascii").split()]
    except OSError:
        return None
    # Kernels before 5.5 count no flushes, those before 4.18 no discards.
    return _Counters(at_work=fields[_AT_WORK], done=sum(fields[place] for place in _DONE if place < len(fields)))
