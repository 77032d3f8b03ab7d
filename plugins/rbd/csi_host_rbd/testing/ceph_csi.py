"""What ceph-csi leaves on a cluster, written with Ceph's own tools in ceph-csi's own order of writes."""

import uuid as uuids
from dataclasses import dataclass
from typing import TYPE_CHECKING

from csi_host_rbd.testing.pools import PoolView

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, kw_only=True)
class CephCsiVolume:
    """A volume as ceph-csi makes it. ``name`` is the CO's."""

    pool: PoolView
    name: str
    uuid: str

    @property
    def image(self) -> str:
        """The image's name."""
        return f"csi-vol-{self.uuid}"

    @property
    def volume_id(self) -> str:
        """The handle."""
        cluster_id = self.pool.cluster.cluster_id
        return f"0001-{len(cluster_id):04x}-{cluster_id}-{self.pool.id():016x}-{self.uuid}"


def make_volume(pool: PoolView, name: str, *, steps: int = 6, size: str = "1G") -> CephCsiVolume:
    """Make a volume; fewer ``steps`` than 6 leave what a crash between two writes leaves.

    1 the uuid's object, empty; 2 the directory key; 3 the uuid's keys; 4 the image; 5 its id; 6 is done.
    """
    volume = CephCsiVolume(pool=pool, name=name, uuid=str(uuids.uuid4()))
    entry = f"csi.volume.{volume.uuid}"
    keys = {"csi.volname": name, "csi.imagename": volume.image, "csi.volume.owner": "default"}

    def write_keys() -> None:
        for key, value in keys.items():
            pool.set_key(entry, key, value)

    writes: list[Callable[[], object]] = [
        lambda: pool.create_object(entry),
        lambda: pool.set_key("csi.volumes.default", f"csi.volume.{name}", volume.uuid),
        write_keys,
        lambda: pool.rbd("create", volume.image, "--size", size, "--image-feature", "layering"),
        lambda: pool.set_key(entry, "csi.imageid", pool.image(volume.image)["id"]),
    ]
    for write in writes[:steps]:
        write()
    return volume


def trash_image(volume: CephCsiVolume) -> None:
    """Do what ceph-csi's DeleteVolume does first, and stop there: the image lies in the trash, without a task."""
    volume.pool.rbd("trash", "mv", volume.image)
