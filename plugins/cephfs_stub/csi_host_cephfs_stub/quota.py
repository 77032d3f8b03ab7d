"""The usage of a CephFS volume, measured against its quota."""

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from csi_host.node.mounts import Mount, mount_at
from csi_host.node.stats import Usage, VolumeStats, volume_stats

# The kernel's client and ceph-fuse, as mountinfo names them; mount.fuse.ceph calls itself by the middle one.
_FS_TYPES = frozenset({"ceph", "fuse.ceph", "fuse.ceph-fuse"})

# What getxattr says of an attribute that is not there: the kernel's client has none for a quota that was never set,
# and one that is older than the attribute, or a mount that lost its server, answers in its own way.
_NO_ATTRIBUTE = frozenset({errno.ENODATA, errno.EOPNOTSUPP})


def read_attribute(path: Path, name: str) -> int:
    """Return a numeric extended attribute, 0 when it is not there; raises OSError, ValueError for something else."""
    try:
        return int(os.getxattr(path, name))
    except OSError as error:
        if error.errno in _NO_ATTRIBUTE:
            return 0
        raise


@dataclass(frozen=True, kw_only=True)
class QuotaStats:
    """Usage of a mounted CephFS directory against ``ceph.quota.max_bytes`` and ``ceph.quota.max_files``.

    The three functions are the kernel's answers, and the answer for every other filesystem.
    """

    mount_at: Callable[[Path], Mount | None] = mount_at
    read_attribute: Callable[[Path, str], int] = read_attribute
    shared_stats: Callable[[Path], VolumeStats] = volume_stats

    def __call__(self, path: Path) -> VolumeStats | None:
        """Return the usage, None where the shared answer is the right one: no CephFS, no quota, or a sick mount."""
        mount = self.mount_at(path)
        if mount is None or mount.fs_type not in _FS_TYPES:
            return None
        try:
            # The recursive sums lag some seconds behind, as does the quota's enforcement, which reads the same sums.
            in_bytes = self._usage(path, limit="ceph.quota.max_bytes", used="ceph.dir.rbytes")
            in_files = self._usage(path, limit="ceph.quota.max_files", used="ceph.dir.rentries")
        except OSError:
            return None
        if in_bytes is None and in_files is None:
            return None
        shared = self.shared_stats(path)
        return replace(shared, bytes=in_bytes or shared.bytes, inodes=in_files or shared.inodes)

    def _usage(self, path: Path, *, limit: str, used: str) -> Usage | None:
        total = self.read_attribute(path, limit)
        if total <= 0:
            return None
        taken = self.read_attribute(path, used)
        return Usage(total=total, used=taken, available=max(0, total - taken))
