"""Who keeps a directory or device busy, as far as /proc tells in a limited time, and whether that was enough."""

import os
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from csi_host.node.mounts import mounts_below

# Stands among the users when not every process could be looked at: there may be more.
NOT_ALL_SEEN = "processes that could not be looked at in time"
_SECONDS = 2.0
_NAMED_AT_MOST = 5
_DEVICES = "/dev/"


def users_of(*paths: str, numbers: Collection[int] = (), seconds: float = _SECONDS) -> list[str]:
    """Return processes, mounts and loop devices that use one of ``paths`` or something below it, a handful at most.

    Links are compared as text: following one into a dead mount would hang. ``numbers`` (``st_rdev``) are of block
    devices that a container may have below /dev by another name. NOT_ALL_SEEN is the last when ``seconds`` are up.
    """
    found = [f"mount at {mount.mount_point}" for path in paths for mount in mounts_below(path)]
    found += [f"/dev/{name}" for name, file in _loop_files() if _is_within(file, paths)]
    until = time.monotonic() + seconds
    for process in _processes():
        if len(found) >= _NAMED_AT_MOST:
            break
        if time.monotonic() >= until:
            return [*found, NOT_ALL_SEEN]
        if any(_is_within(text, paths) or _is_one_of(numbers, link, text) for link, text in _links(process)):
            found.append(f"process {process.name} ({_name(process)})")
    return found[:_NAMED_AT_MOST]


def _processes() -> Iterator[Path]:
    return (entry for entry in Path("/proc").iterdir() if entry.name.isdigit())


def _links(process: Path) -> Iterator[tuple[Path, str]]:
    """Yield the links of a process, and to what they lead."""
    for name in ("cwd", "root"):
        yield from _target(process / name)
    try:
        descriptors = list((process / "fd").iterdir())
    except OSError:
        return
    for descriptor in descriptors:
        yield from _target(descriptor)


def _target(link: Path) -> Iterator[tuple[Path, str]]:
    # Processes come and go while we look.
    try:
        yield link, str(link.readlink())
    except OSError:
        return


def _is_one_of(numbers: Collection[int], link: Path, text: str) -> bool:
    # Nothing but a filesystem in memory is below /dev, so following the link does not hang.
    if not numbers or not text.startswith(_DEVICES):
        return False
    try:
        return link.stat().st_rdev in numbers
    except OSError:
        return False


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
