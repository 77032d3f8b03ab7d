"""What attachers ask the kernel of a block device, and letting go of one that somebody may hold for a moment."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from csi_host.node.mounts import mounts_of_device, parse_mounts
from csi_host.process import ProcessError
from csi_host_common_node.holders import users_of
from csi_host_rbd.attach.attacher import DeviceInUse

_SYS_BLOCK = Path("/sys/block")
PAUSE_SECONDS = 0.2


def attribute(device: str, name: str) -> str | None:
    """Return what the kernel says of a block device, None when it is not there or has no such attribute."""
    try:
        return (_SYS_BLOCK / Path(device).name / name).read_text().rstrip("\n")
    except OSError:
        return None


def comes_true(is_so: Callable[[], bool], *, patience: float, pause: Callable[[float], None]) -> bool:
    """Whether it is so within ``patience`` seconds."""
    until = time.monotonic() + patience
    while not is_so():
        if time.monotonic() >= until:
            return False
        pause(PAUSE_SECONDS)
    return True


def refuse_mounted(device: str) -> None:
    """Raise DeviceInUse naming the places where a device is mounted, or bind mounted as a block volume."""
    try:
        places = [mount.mount_point for mount in mounts_of_device(device)]
    except FileNotFoundError:
        return
    if places:
        raise DeviceInUse(f"{device} is still mounted at {', '.join(places)}; unmount it first")


def holders_of(device: str) -> list[str]:
    """Return who has a device: devices on top of it, mounts in any namespace we can see, processes; best effort."""
    found = [f"/dev/{path.name}" for path in _SYS_BLOCK.glob(f"{Path(device).name}/holders/*")]
    found += [f"mount at {place}" for place in _mount_points_anywhere(device)]
    return found or users_of(device)


def release(
    device: str,
    unmap: Callable[[], object],
    *,
    is_there: Callable[[], bool],
    busy_code: int,
    patience: float,
    pause: Callable[[float], None],
) -> None:
    """Unmap a device that is mounted nowhere, again for ``patience`` seconds while it is busy: udev looks at devices.

    ``busy_code`` is the exit code that says so. Raises DeviceInUse naming who has it, and what unmapping fails with.
    """
    refuse_mounted(device)
    until = time.monotonic() + patience
    while True:
        try:
            unmap()
        except ProcessError as error:
            if not is_there():
                return
            if error.exit_code != busy_code:
                raise
            if time.monotonic() >= until:
                who = ", ".join(holders_of(device)) or "no holder found in this namespace"
                raise DeviceInUse(f"{device} cannot be unmapped, it is in use: {who}") from error
        else:
            return
        pause(PAUSE_SECONDS)


def _mount_points_anywhere(device: str) -> Iterator[str]:
    """Yield where a device's filesystem is mounted, in our namespace and in those of all processes we can see."""
    try:
        number = Path(device).stat().st_rdev
    except FileNotFoundError:
        return
    wanted = f"{os.major(number)}:{os.minor(number)}"
    seen: set[str] = set()
    for process in Path("/proc").iterdir():
        # Processes come and go while we look.
        with suppress(OSError, ValueError):
            if not process.name.isdigit() or (namespace := str((process / "ns/mnt").readlink())) in seen:
                continue
            seen.add(namespace)
            for mount in parse_mounts((process / "mountinfo").read_bytes()):
                if wanted == mount.device or mount.source == device:
                    yield mount.mount_point
