"""Where a staged volume is on this node: the layout is ceph-csi's."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from csi_host.node.mounts import Mount, mount_at, mounts_showing, read_mounts
from csi_host_rbd.errors import VolumeNotFound
from csi_host_rbd.node.stash import STASH_NAME, Stash, read_stash

_NAME_BYTES_LIMIT = 255


@dataclass(frozen=True, kw_only=True)
class Staging:
    """One volume's staging directory, and in it what the volume is mounted on: ``<directory>/<volume_id>``."""

    directory: Path
    volume_id: str

    @classmethod
    def of(cls, directory: str, volume_id: str) -> Self:
        """Raise VolumeNotFound for an id that cannot be a file name: no volume is staged under it, ever."""
        is_name = volume_id not in {"", ".", "..", STASH_NAME} and not set(volume_id) & {"/", "\0"}
        if not is_name or len(volume_id.encode()) > _NAME_BYTES_LIMIT or "\0" in directory:
            raise VolumeNotFound(f"volume_id: no volume has the id {volume_id!r}")
        return cls(directory=Path(directory), volume_id=volume_id)

    @property
    def target(self) -> Path:
        """The directory or, of a block volume, the file that shows the volume."""
        return self.directory / self.volume_id

    def stash(self) -> Stash | None:
        """Return the stash of the directory, None when it has none; raises StashUnreadable."""
        stash = read_stash(self.directory)
        # ceph-csi's do not say whose they are; the directory is one volume's.
        return replace(stash, volume_id=stash.volume_id or self.volume_id) if stash else None

    def owns(self, stash: Stash) -> bool:
        """Whether a stash found here is of this volume."""
        return stash.volume_id == self.volume_id

    def mount(self) -> Mount | None:
        """Return what is mounted on the target, None when nothing is."""
        return mount_at(self.target)


def find_staging(volume_id: str, volume_path: str) -> Staging | None:
    """Return where the volume that is published at ``volume_path`` is staged, None when it is not published there."""
    mounts = read_mounts()
    if mount_at(volume_path, mounts) is None:
        return None
    for place in _directories_of(mounts_showing(volume_path, mounts), volume_id):
        if read_stash(place) is not None:
            return Staging(directory=place, volume_id=volume_id)
    return None


def _directories_of(mounts: Sequence[Mount], volume_id: str) -> list[Path]:
    return [Path(mount.mount_point).parent for mount in mounts if Path(mount.mount_point).name == volume_id]
