"""The plugin that answers for every driver without a better answer."""

from dataclasses import replace
from pathlib import Path

from csi_host.hookspecs import hookimpl
from csi_host.node.stats import VolumeStats, volume_stats
from csi_host_common_node.stalls import number_below, stalled

# Less than the time in which statistics are answered, and more than a busy device needs for one request.
_STALLED_SECONDS = 3.0


@hookimpl(trylast=True)
def csi_host_volume_stats(volume_path: Path) -> VolumeStats:
    """Return what the kernel says of the mount or block device at ``volume_path``, and whether its device works."""
    stats = volume_stats(volume_path)
    if stats.abnormal or not stalled(number_below(volume_path), seconds=_STALLED_SECONDS):
        return stats
    why = (
        f"the device has completed nothing of its work for {_STALLED_SECONDS:.0f} s; its backend is down or overloaded"
    )
    return replace(stats, abnormal=True, message=why)
