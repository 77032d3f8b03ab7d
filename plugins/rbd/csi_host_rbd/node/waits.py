"""Whether the daemon below a volume waits for its cluster, where the kernel's counters do not tell.

rbd-nbd takes writes into its memory and answers at once; what hangs while the cluster is silent is the next flush, and
that the kernel does not count. The daemon itself knows what it has sent and for how long nobody has answered.
"""

import logging
from pathlib import Path

from csi_host_common_node.stalls import number_below
from csi_host_rbd.attach.admin_socket import oldest_request_seconds
from csi_host_rbd.attach.nbd_daemons import PROGRAM
from csi_host_rbd.attach.nbd_devices import connected_devices

log = logging.getLogger(__name__)

# As for the devices that the kernel does count for: more than a busy cluster needs for one request.
_WAITS_SECONDS = 3.0
_SYSFS, _PROC = Path("/sys"), Path("/proc")


def why_waiting(volume_path: Path) -> str:
    """Return in words how long the rbd-nbd below a volume has waited, "" when that is not too long or there is none.

    Takes a second at the most; raises OSError when the path cannot be looked at.
    """
    device = _nbd_below(number_below(volume_path))
    if not device:
        return ""
    for found in connected_devices(_SYSFS, _PROC):
        if found.device == device and found.daemon is not None and found.daemon.admin_socket:
            return _complaint(found.daemon.admin_socket)
    return ""


def _complaint(admin_socket: str) -> str:
    try:
        seconds = oldest_request_seconds(Path(admin_socket))
    except (OSError, ValueError) as error:
        log.info(f"{PROGRAM} does not say what it waits for: {error}")
        return ""
    if seconds < _WAITS_SECONDS:
        return ""
    return f"{PROGRAM} has waited {seconds:.0f} s for the cluster; its backend is down or overloaded"


def _nbd_below(number: str) -> str:
    """Return the network block device that a device is, or that dm-crypt has its mapping on; "" for none."""
    block = (_SYSFS / "dev/block" / number).resolve()
    names = [block.name, *(slave.name for slave in (block / "slaves").glob("*"))] if number else []
    return next((f"/dev/{name}" for name in names if name.startswith("nbd")), "")
