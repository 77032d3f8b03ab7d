"""Mounting the filesystem of a volume where it is staged."""

from csi_host.access import VolumeAccess
from csi_host.errors import FailedPrecondition
from csi_host.node.devices import is_read_only
from csi_host_common_node.mounter import Mounter, MountFailed
from csi_host_rbd.node.staged import wants_read_only
from csi_host_rbd.node.staging import Staging

# The mount flag that shows a filesystem as it is on disk, without what is in its journal only.
_WITHOUT_REPLAY = {
    "btrfs": "rescue=nologreplay",
    "ext3": "noload",
    "ext4": "noload",
    "xfs": "norecovery",
}


class JournalNotReplayed(FailedPrecondition):
    """A filesystem on a read-only device does not mount, as one with an unclean journal; the message says how to."""


def mount_filesystem(mounter: Mounter, device: str, staging: Staging, kind: str, access: VolumeAccess) -> None:
    """Mount the filesystem of a type on the staging target.

    Read-only nodes attach read-only, so that no two of them replay one journal at the same time; what needs that is
    not shown half replayed unless the mount flags ask for it. Raises JournalNotReplayed, and what the mounter raises.
    """
    try:
        mounter.mount(device, staging.target, kind, _options(kind, access))
    except MountFailed as error:
        if not is_read_only(device):
            raise
        raise JournalNotReplayed(
            f"volume {staging.volume_id} cannot be mounted: {error}. It is attached read-only, so a journal that its "
            "last user did not write back (a snapshot of a mounted volume has one) cannot be replayed: mount the "
            "volume once for writing (ReadWriteOnce), or take it as it is on disk with the mount flag "
            f"{_WITHOUT_REPLAY[kind]}"
        ) from error


def _options(kind: str, access: VolumeAccess) -> list[str]:
    # A clone of an xfs has the UUID of its source, which may be mounted on this node as well.
    options = ["nouuid"] if kind == "xfs" else []
    for word in ("_netdev", *access.mount_flags, *(["ro"] if wants_read_only(access) else [])):
        if word not in options:
            options.append(word)
    return options
