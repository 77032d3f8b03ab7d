"""Who keeps a directory or device busy, as far as /proc tells in a short time; for error messages only."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

from csi_host.node.mounts import mounts_below

_SECONDS = 2.0
_NAMED_AT_MOST = 5


def users_of(path: str) -> list[str]:
    """Return processes, mounts and loop devices that use ``path`` or something below it, a handful at most.

    Links are compared as text: following one into a dead mount would hang.
    """
    found: list[str] = [f"mount at {mount.mount_point}" for mount in mounts_below(path)]
    found += [f"/dev/{name}" for name, file in _loop_files() if _is_within(file, path)]
    until = time.monotonic() + _SECONDS
    for process in _processes():
        if len(found) >= _NAMED_AT_MOST or time.monotonic() > until:
            break
        if any(_is_within(link, path) for link in _links(process)):
            found.append(f"process {process.name} ({_name(process)})")
    return found[:_NAMED_AT_MOST]


def _processes() -> Iterator[Path]:
    return (entry for entry in Path("/proc").iterdir() if entry.name.isdigit())


def _links(process: Path) -> Iterator[str]:
    for name in ("cwd", "root"):
        yield from _target(process / name)
    try:
        descriptors = list((process / "fd").iterdir())
    except OSError:
        return
    for descriptor in descriptors:
        yield from _target(descriptor)


def _target(link: Path) -> Iterator[str]:
    # Processes come and go while we look.
    try:
        yield str(link.readlink())
    except OSError:
        return


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


def _is_within(text: str, path: str) -> bool:
    return text == path or text.startswith(path.rstrip("/") + "/")
