"""The plugin that answers for every driver without a better answer."""

import os
import stat
from dataclasses import replace
from pathlib import Path

from csi_host.hookspecs import hookimpl
from csi_host.node.mounts import mount_at
from csi_host.node.stats import VolumeStats, volume_stats
from csi_host_common_node.stalls import device_number, stalled

# Less than the time in which statistics are answered, and more than a busy device needs for one request.
_STALLED_SECONDS = 3.0


@hookimpl(trylast=True)
def csi_host_volume_stats(volume_path: Path) -> VolumeStats:
    """Return what the kernel says of the mount or block device at ``volume_path``, and whether its device works."""
    stats = volume_stats(volume_path)
    if stats.abnormal or not stalled(_device_number(volume_path), seconds=_STALLED_SECONDS):
        return stats
    why = (
        f"the device has completed nothing of its work for {_STALLED_SECONDS:.0f} s; its backend is down or overloaded"
    )
    return replace(stats, abnormal=True, message=why)


def _device_number(volume_path: Path) -> str:
    found = volume_path.stat()
    if stat.S_ISBLK(found.st_mode):
        return f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
    mount = mount_at(volume_path)
    return device_number(mount) if mount is not None else ""
