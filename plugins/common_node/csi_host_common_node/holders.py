"""Who keeps a directory or device busy, as far as /proc tells in a limited time, and whether that was enough."""

import os
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from csi_host.node.mounts import mounts_below
from csi_host_common_node.open_nodes import OpenNodes, processes

# Stands among the users when not every process could be looked at: there may be more.
NOT_ALL_SEEN = "processes that could not be looked at in time"
_SECONDS = 2.0
_NAMED_AT_MOST = 5
_DEVICES = "/dev/"


def users_of(
    *paths: str,
    numbers: Collection[int] = (),
    seconds: float = _SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> list[str]:
    """Return processes, mounts and loop devices that use one of ``paths`` or something below it, a handful at most.

    Links are compared as text: following one into a dead mount would hang. ``numbers`` (``st_rdev``) are of block
    devices that a container may have below /dev by another name. NOT_ALL_SEEN is the last when ``seconds`` are up.
    """
    found = [f"mount at {mount.mount_point}" for path in paths for mount in mounts_below(path)]
    found += [f"/dev/{name}" for name, file in _loop_files() if _is_within(file, paths)]
    until = clock() + seconds

    def check_time() -> None:
        if clock() >= until:
            raise _TimeIsUp

    nodes = OpenNodes(check_time)
    try:
        for process in processes():
            if len(found) >= _NAMED_AT_MOST:
                break
            check_time()
            if _uses(process, paths, numbers, nodes, check_time):
                found.append(f"process {process.name} ({_name(process)})")
    except _TimeIsUp:
        return [*found, NOT_ALL_SEEN]
    return found[:_NAMED_AT_MOST]


class _TimeIsUp(Exception):
    pass


def _uses(
    process: Path,
    paths: Collection[str],
    numbers: Collection[int],
    nodes: OpenNodes,
    check_time: Callable[[], None],
) -> bool:
    if any(_is_within(_target(process / name), paths) for name in ("cwd", "root")):
        return True
    for descriptor in _descriptors(process):
        check_time()
        target = _target(descriptor)
        if _is_within(target, paths):
            return True
        # Below /dev may be any filesystem, a dead one too: not every link there can be followed.
        if numbers and target.startswith(_DEVICES) and nodes.number_of(process, descriptor.name) in numbers:
            return True
    return False


def _descriptors(process: Path) -> list[Path]:
    try:
        return list((process / "fd").iterdir())
    except OSError:
        return []


def _target(link: Path) -> str:
    """Return to what a link leads; nothing when it is gone: processes come and go while we look."""
    try:
        return str(link.readlink())
    except OSError:
        return ""


def _name(process: Path) -> str:
    try:
        return (process / "comm").read_text(errors="replace").strip()
    except OSError:
        return "gone"


def _loop_files() -> Iterator[tuple[str, str]]:
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            yield entry.parent.parent.name, os.fsdecode(entry.read_bytes()).rstrip("\n")
        except OSError:
            continue


def _is_within(text: str, paths: Collection[str]) -> bool:
    return any(text == path or text.startswith(path.rstrip("/") + "/") for path in paths)
