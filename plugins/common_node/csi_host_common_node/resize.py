"""Growing a filesystem to the size of its device."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from csi_host.errors import FailedPrecondition
from csi_host.node.devices import is_read_only, size_bytes
from csi_host.node.mounts import Mount, StrPath, mount_at, mounts_of_device
from csi_host.process import Runner
from csi_host_common_node.filesystem import Blank, Filesystems, Has
from csi_host_common_node.geometry import EXT_TYPES, geometry_of
from csi_host_common_node.patience import Patience
from csi_host_common_node.programs import require

_CHANGE_SECONDS = 3600.0
_REPAIRED_AT_MOST = 3
_CAP_SYS_RESOURCE = 24
# What grows while it is mounted and only then.
_ONLINE_ONLY: Final = ("xfs", "btrfs")
_LOOK_SECONDS = 30.0


def effective_capabilities() -> int:
    """Return the capabilities of this process as the bits of capabilities(7)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


class Grower:
    """Grows ext3, ext4, xfs and btrfs: what is mounted online, an ext that is not mounted offline.

    The filesystem's type comes from its superblock, whether and where it is mounted from mountinfo. The kernel grows in
    steps of its journal: cut off, it leaves a sound filesystem, which the next growth goes on from. An ext that
    resize2fs itself was growing when it died needs ``Filesystems.repair`` first; prefer to grow it mounted.
    """

    def __init__(
        self,
        run: Runner,
        *,
        capabilities: Callable[[], int] = effective_capabilities,
        patience: Patience | None = None,
    ) -> None:
        self._run = run
        self._patience = patience or Patience()
        self._filesystems = Filesystems(run, patience=self._patience)
        self._capabilities = capabilities

    def needs_growing(self, device: StrPath, mount_point: StrPath | None = None) -> bool:
        """Tell whether the device has more blocks than its filesystem, so many that it can use them.

        False for a read-only device or mount, and for an xfs or btrfs that is not mounted, as it cannot grow now.
        Raises FailedPrecondition when there is no filesystem that can grow, and DeviceSilent.
        """
        fs_type = self._fs_type(device)
        mount = _mount_of(device, mount_point)
        if is_read_only(device) or (mount is not None and mount.is_read_only):
            return False
        if fs_type in _ONLINE_ONLY and mount is None:
            return False
        found = self._patience.look(device, lambda: geometry_of(fs_type, device, mount), at_most=_LOOK_SECONDS)
        return size_bytes(device) // found.block_bytes >= found.blocks + found.least_growth_blocks

    def grows_mounted(self, fs_type: str) -> bool:
        """Tell whether this process may grow a filesystem of a type while it is mounted."""
        return fs_type in _ONLINE_ONLY or bool(self._capabilities() >> _CAP_SYS_RESOURCE & 1)

    def grow(
        self,
        device: StrPath,
        mount_point: StrPath | None = None,
        *,
        before_offline: Callable[[], None] = lambda: None,
    ) -> None:
        """Grow the filesystem to the size of its device; nothing happens when it has it, or is read-only.

        ``before_offline`` is called when an ext that is not mounted has been found sound, just before resize2fs begins
        to change it. Raises FailedPrecondition when this process may not grow a mounted ext (CAP_SYS_RESOURCE), and
        ProcessError.
        """
        if not self.needs_growing(device, mount_point):
            return
        fs_type = self._fs_type(device)
        mount = _mount_of(device, mount_point)
        if fs_type == "xfs" and mount is not None:
            require(["xfs_growfs"])
            self._run(["xfs_growfs", "-d", mount.mount_point], timeout=_CHANGE_SECONDS)
        elif fs_type == "btrfs" and mount is not None:
            require(["btrfs"])
            self._run(["btrfs", "filesystem", "resize", "max", mount.mount_point], timeout=_CHANGE_SECONDS)
        elif mount is None:
            self._grow_ext_offline(device, before_offline)
        else:
            self._grow_ext_online(device, fs_type)

    def _grow_ext_online(self, device: StrPath, fs_type: str) -> None:
        # The kernel asks for it in EXT4_IOC_RESIZE_FS and answers EPERM, which resize2fs does not explain.
        if not self.grows_mounted(fs_type):
            raise FailedPrecondition(
                f"growing a mounted {fs_type} needs CAP_SYS_RESOURCE, which this process does not have; "
                f"{os.fspath(device)} has its new size, its filesystem grows when the volume is staged next"
            )
        require(["resize2fs"])
        self._run(["resize2fs", "--", os.fspath(device)], timeout=_CHANGE_SECONDS)

    def _grow_ext_offline(self, device: StrPath, before: Callable[[], None]) -> None:
        require(["e2fsck", "resize2fs"])
        # resize2fs works on a filesystem only that was checked in full since it was last mounted.
        check = ["e2fsck", "-f", "-p", "--", os.fspath(device)]
        self._run(check, timeout=_CHANGE_SECONDS, ok_codes=range(_REPAIRED_AT_MOST + 1))
        before()
        self._run(["resize2fs", "--", os.fspath(device)], timeout=_CHANGE_SECONDS)

    def _fs_type(self, device: StrPath) -> str:
        content = self._filesystems.content_of(device)
        if isinstance(content, Has) and content.kind in (*EXT_TYPES, *_ONLINE_ONLY):
            return content.kind
        what = "no filesystem" if isinstance(content, Blank) else content.kind
        raise FailedPrecondition(f"{os.fspath(device)} holds {what}; ext3, ext4, xfs and btrfs can be grown")


def _mount_of(device: StrPath, mount_point: StrPath | None) -> Mount | None:
    """Return the mount through which the filesystem grows: a writable one, if there is any."""
    on_device = [mount for mount in mounts_of_device(device) if mount.fs_type in (*EXT_TYPES, *_ONLINE_ONLY)]
    if mount_point is not None and (mount := mount_at(mount_point)) is not None:
        if mount not in on_device:
            raise FailedPrecondition(f"{mount.mount_point} shows {mount.source}, not {os.fspath(device)}")
        return mount
    return min(on_device, key=lambda mount: mount.is_read_only, default=None)
