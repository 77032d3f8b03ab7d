"""A process that keeps a mount namespace of its own, without what others on this machine have mounted from volumes.

A copy of a mount keeps its device busy after the mount itself is gone, and shows its filesystem as mounted elsewhere.
Run as a program it says "ready" once it is, and ends with its input.
"""

import ctypes
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from csi_host.node.mounts import Mount, read_mounts

# From <sched.h> and <sys/mount.h>.
_CLONE_NEWNS = 0x20000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000
_MNT_DETACH, _UMOUNT_NOFOLLOW = 0x2, 0x8

_SYSTEM = ("/", "/etc", "/usr", "/var")
_VOLUME_DEVICES = ("/dev/loop", "/dev/rbd", "/dev/nbd", "/dev/mapper/", "/dev/dm-")


class _Kernel:
    """What Python has no functions for; each raises OSError."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)

    def leave_mount_namespace(self) -> None:
        """Go on in a copy of this process' mount namespace, from which nothing comes back to the one it left."""
        self._check(self._libc.unshare(_CLONE_NEWNS))
        self._check(self._libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None))

    def detach(self, place: str) -> None:
        """Unmount lazily, with all that is mounted below."""
        self._check(self._libc.umount2(os.fsencode(place), _MNT_DETACH | _UMOUNT_NOFOLLOW))

    def _check(self, result: int) -> None:
        if result != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def main() -> None:
    """Keep a new mount namespace until the input ends."""
    kernel = _Kernel()
    # A developer's machine may itself live on such devices. Resolved before: the copies should go at once.
    needed = [os.path.realpath(path) for path in (*_SYSTEM, tempfile.gettempdir(), sys.prefix, __file__, Path.cwd())]
    kernel.leave_mount_namespace()
    mounts = read_mounts()
    if any(mount.propagation for mount in mounts):
        raise SystemExit("unmounting in the new namespace would reach the machine's own mounts")
    # What holds other mounts comes before them and takes them along, so that no path leads through a dead mount.
    for mount in mounts:
        if _is_of_volume(mount) and not any(_is_within(path, mount.mount_point) for path in needed):
            # Gone with another, or covered.
            with suppress(OSError):
                kernel.detach(mount.mount_point)
    print("ready", flush=True)  # noqa: T201 - to who started it
    sys.stdin.read()


def _is_of_volume(mount: Mount) -> bool:
    is_node = mount.fs_type == "devtmpfs" and mount.root != "/" and not mount.mount_point.startswith("/dev/")
    is_served = mount.fs_type in {"fuse", "fuseblk"} or mount.fs_type.startswith("fuse.")
    return is_node or is_served or mount.source.startswith(_VOLUME_DEVICES)


def _is_within(path: str, place: str) -> bool:
    return path == place or path.startswith(place.rstrip("/") + "/")


if __name__ == "__main__":
    main()
