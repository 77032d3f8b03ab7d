"""Taking a network block device away: when nobody uses it, and with what was written to it in its image.

Unlike other devices, the kernel and rbd-nbd let one go that is mounted or open, and what is not yet written with it.
"""

import time
from collections.abc import Callable

from csi_host.errors import Unavailable
from csi_host.process import ProcessError, ProcessTimeout, Runner
from csi_host.request import seconds_for
from csi_host_rbd.attach.attacher import DeviceInUse
from csi_host_rbd.attach.block_devices import PAUSE_SECONDS, comes_true, holders_of, refuse_mounted
from csi_host_rbd.attach.nbd_daemons import PROGRAM
from csi_host_rbd.attach.nbd_devices import NbdDevice

_UNMAP_SECONDS = 30.0
_FLUSH_SECONDS = 60.0
# Enough for every process of a crowded machine: a device that one of them may have open is not taken away.
_SEARCH_SECONDS = 20.0


def unmap(
    device: NbdDevice,
    options: str,
    *,
    run: Runner,
    is_connected: Callable[[], bool],
    patience: float,
    pause: Callable[[float], None],
    search_seconds: float = _SEARCH_SECONDS,
) -> None:
    """Flush and unmap a device that nobody uses; one without a daemon is not flushed.

    ``options`` are rbd-nbd's for unmapping, separated by commas. Raises DeviceInUse after ``patience`` seconds, naming
    who has it or a partition of it, also when ``search_seconds`` are not enough to look at every process; and
    Unavailable when what was written cannot be flushed or the device stays.
    """
    _wait_until_unused(device.device, patience, pause, search_seconds)
    if device.daemon is not None:
        # A device is written to the end when the last one closes it, and the daemon has it open until its own end.
        _flush(device.device, run)
    words = [f"--{word}" for word in filter(None, options.split(","))]
    try:
        run(
            [PROGRAM, "unmap", device.device, *words],
            timeout=seconds_for("unmapping the image", at_most=_UNMAP_SECONDS),
        )
    except ProcessError:
        if is_connected():
            raise
    if not comes_true(lambda: not is_connected(), patience=patience, pause=pause):
        raise Unavailable(f"{device.device} is still there after {PROGRAM} unmap; ask again")


def _flush(device: str, run: Runner) -> None:
    try:
        run(
            ["blockdev", "--flushbufs", device],
            timeout=seconds_for("writing what is in the page cache", at_most=_FLUSH_SECONDS),
        )
    except ProcessTimeout as error:
        raise Unavailable(
            f"{device} stays, as what was last written to it is not yet in its image, and its cluster does not "
            f"take it: {error}; ask again"
        ) from error


def _wait_until_unused(device: str, patience: float, pause: Callable[[float], None], search_seconds: float) -> None:
    """Raise DeviceInUse naming who has the device, but for who has it only for a moment, as udev does."""
    refuse_mounted(device)
    until = time.monotonic() + patience
    while users := [user for user in holders_of(device, seconds=search_seconds) if not user.endswith(f"({PROGRAM})")]:
        if time.monotonic() >= until:
            raise DeviceInUse(f"{device} is in use: {', '.join(users)}")
        pause(PAUSE_SECONDS)
