"""What the journal says: the kinds of entries, by the names of their objects and keys, and one entry."""

from dataclasses import dataclass

from csi_host_rbd.ceph.cluster import Pool


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What the journal's objects and keys are called for volumes, snapshots, and groups of either."""

    directory: str
    prefix: str
    name_key: str
    image_prefix: str
    image_key: str = "csi.imagename"
    has_source: bool = False


VOLUMES = Kind(directory="csi.volumes.", prefix="csi.volume.", name_key="csi.volname", image_prefix="csi-vol-")
SNAPSHOTS = Kind(
    directory="csi.snaps.", prefix="csi.snap.", name_key="csi.snapname", image_prefix="csi-snap-", has_source=True
)
# What is an image's name in the others is the name of a group of librbd's here.
GROUPS = Kind(
    directory="csi.groups.",
    prefix="csi.volume.group.",
    name_key="csi.volname",
    image_prefix="csi-vol-group-",
    image_key="csi.groupname",
)


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """A CO name with the image that belongs to it.

    ``pool`` is the image's; ``journal_pool`` is where the directory is, the same one but for volumes that ceph-csi
    before v3.11 made in topology mode. ``name`` is "" when the object of a handle has lost its keys. ``source`` is the
    image that a snapshot was taken of; ``kms_id`` and ``encryption_type`` are "" for what is not encrypted.
    ``group_id`` is the handle of the group snapshot that a snapshot is a part of.
    """

    name: str
    uuid: str
    pool: Pool
    journal_pool: Pool
    image_name: str
    image_id: str = ""
    owner: str = ""
    source: str = ""
    kms_id: str = ""
    encryption_type: str = ""
    group_id: str = ""

    @property
    def directory_value(self) -> str:
        """What the directory has under the name."""
        if self.journal_pool.pool_id == self.pool.pool_id:
            return self.uuid
        return f"{self.pool.pool_id:016x}/{self.uuid}"
