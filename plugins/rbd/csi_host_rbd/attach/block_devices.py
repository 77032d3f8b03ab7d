"""What attachers ask the kernel of a block device, and letting go of one that somebody may hold for a moment."""

import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path

from csi_host.node.mounts import Mount, mounts_of_device, parse_mounts
from csi_host.process import ProcessError
from csi_host_common_node.holders import users_of
from csi_host_rbd.attach.attacher import DeviceInUse

_SYS_BLOCK = Path("/sys/block")
PAUSE_SECONDS = 0.2
_SEARCH_SECONDS = 2.0


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
    """Raise DeviceInUse naming where a device or a partition of it is mounted, or bind mounted as a block volume."""
    places = [mount.mount_point for node in _nodes(device) for mount in _mounts_here(node)]
    if places:
        raise DeviceInUse(f"{device} is still mounted at {', '.join(places)}; unmount it first")


def holders_of(device: str, *, seconds: float = _SEARCH_SECONDS, sys_block: Path = _SYS_BLOCK) -> list[str]:
    """Return who has a device or a partition of it: devices on top, mounts in any namespace we can see, processes.

    ``seconds`` are for looking at processes; NOT_ALL_SEEN is among the answers when that was too short.
    """
    whole = sys_block / Path(device).name
    on_top = [*whole.glob("holders/*"), *whole.glob(f"{whole.name}*/holders/*")]
    nodes, numbers = _nodes(device, sys_block), _numbers(device, sys_block)
    found = [f"/dev/{path.name}" for path in on_top]
    found += [f"mount at {place}" for place in _mount_points_anywhere(nodes, numbers)]
    return found or users_of(*nodes, numbers=numbers, seconds=seconds)


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


def mount_points_anywhere(device: str) -> Iterator[str]:
    """Yield where a device's filesystem, or a partition's, is mounted, in our namespace and in all we can see."""
    with suppress(FileNotFoundError):
        numbers = {Path(device).stat().st_rdev, *_numbers(device, _SYS_BLOCK)}
        yield from _mount_points_anywhere(_nodes(device), numbers)


def _nodes(device: str, sys_block: Path = _SYS_BLOCK) -> list[str]:
    """Return a device and its partitions."""
    whole = sys_block / Path(device).name
    return [device, *(f"/dev/{path.parent.name}" for path in whole.glob(f"{whole.name}*/partition"))]


def _numbers(device: str, sys_block: Path) -> set[int]:
    """Return the numbers of a device and its partitions, as ``st_rdev`` has them."""
    whole = sys_block / Path(device).name
    numbers: set[int] = set()
    for path in (whole / "dev", *whole.glob(f"{whole.name}*/dev")):
        # A device may go while we look.
        with suppress(OSError, ValueError):
            major, _, minor = path.read_text().partition(":")
            numbers.add(os.makedev(int(major), int(minor)))
    return numbers


def _mounts_here(node: str) -> tuple[Mount, ...]:
    try:
        return mounts_of_device(node)
    except FileNotFoundError:
        return ()


def _mount_points_anywhere(nodes: Collection[str], numbers: Collection[int]) -> Iterator[str]:
    """Yield where filesystems on devices are mounted, in our namespace and in those of all processes we can see."""
    wanted = {f"{os.major(number)}:{os.minor(number)}" for number in numbers}
    seen: set[str] = set()
    for process in Path("/proc").iterdir():
        # Processes come and go while we look.
        with suppress(OSError, ValueError):
            if not process.name.isdigit() or (namespace := str((process / "ns/mnt").readlink())) in seen:
                continue
            seen.add(namespace)
            for mount in parse_mounts((process / "mountinfo").read_bytes()):
                if mount.device in wanted or mount.source in nodes:
                    yield mount.mount_point
