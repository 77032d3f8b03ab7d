"""Groups of images, and the snapshot of all of them at one point in time.

librbd takes the exclusive locks of all images before it takes the first snapshot, so that nothing is written to any of
them between the first and the last. An image without the feature exclusive-lock is not kept from being written.

Each of librbd's calls is several operations, and can be made again after it was cut off: a group of this name, an image
that is in it already and one that is not in it any more are fine. A snapshot that was cut off is not complete, and
counts as none. Removing a group removes its snapshots, and takes its images out of it; of a snapshot that clones hang
on librbd keeps the images' parts out of sight, as it does with other snapshots.
"""

from contextlib import suppress

from csi_host_rbd.ceph.bindings import rbd
from csi_host_rbd.ceph.calls import call, write
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.create import ImageOptions, make_image
from csi_host_rbd.ceph.failures import ImageInGroup, ObjectExists, ObjectNotFound
from csi_host_rbd.ceph.image import open_image
from csi_host_rbd.ceph.registries import find_group
from csi_host_rbd.image_naming import TEMPORARY_SUFFIX, uuid_in


def is_temporary(name: str) -> bool:
    """Whether a group is there only while a snapshot of it is taken and cloned."""
    return name.endswith(TEMPORARY_SUFFIX) and bool(uuid_in(name))


def exists(pool: Pool, name: str) -> bool:
    """Whether there is a group of this name. 1 operation."""
    return find_group(pool, name) is not None


def can_clone_group_snapshots() -> bool:
    """Whether librbd, as the bindings show it, can clone an image's part of a group snapshot, which has no name."""
    return hasattr(rbd.Group, "get_snap_info") and "p_snapshot" in (rbd.RBD.clone.__doc__ or "")


def create_group(pool: Pool, name: str) -> None:
    """Make a group; fine when there is one. 3 operations."""
    with suppress(ObjectExists):
        write(pool, name, "creating group", lambda: rbd.RBD().group_create(pool.ioctx, name))


def add_image(pool: Pool, name: str, image: str) -> None:
    """Put an image of the pool into a group, fine when it is; raises ImageInGroup when it is in another one."""

    def add() -> None:
        rbd.Group(pool.ioctx, name).add_image(pool.ioctx, image)

    try:
        write(pool, name, f"adding image {image} to group", add)
    except ObjectExists as error:
        raise ImageInGroup(
            f"image {pool.spec(image)} is in the group {group_of(pool, image)!r}, and an image can be in one only"
        ) from error


def group_of(pool: Pool, image: str) -> str:
    """Return the name of the group that an image is in, "" for none; raises ImageNotFound."""
    with open_image(pool, name=image, read_only=True) as one:
        return one.group()


def take_snapshot(pool: Pool, name: str) -> None:
    """Take a snapshot of a group, under the group's name; one that is there is removed before.

    Raises ImageBusy when a client does not give an image's lock back.
    """
    present = call(pool, name, "listing the snapshots of group", lambda: _snapshots(pool, name))
    if name in present:
        write(pool, name, "removing the snapshot of group", lambda: rbd.Group(pool.ioctx, name).remove_snap(name))
    write(pool, name, "taking the snapshot of group", lambda: rbd.Group(pool.ioctx, name).create_snap(name))


def snapshot_ids(pool: Pool, name: str) -> dict[str, int] | None:
    """Return the ids of the images' snapshots by the images' names, None when there is no complete snapshot."""
    try:
        found = call(
            pool, name, "reading the snapshot of group", lambda: rbd.Group(pool.ioctx, name).get_snap_info(name)
        )
    except ObjectNotFound:
        return None
    if found["state"] != rbd.RBD_GROUP_SNAP_STATE_COMPLETE:
        return None
    return {str(one["image_name"]): int(one["snap_id"]) for one in found["image_snaps"]}


def remove_group(pool: Pool, name: str) -> None:
    """Remove a group with its snapshots; its images stay, and are in none then. Fine when it is gone: 1 operation."""
    if not exists(pool, name):
        return
    with suppress(ObjectNotFound):
        write(pool, name, "removing group", lambda: rbd.RBD().group_remove(pool.ioctx, name))


def clone_part(pool: Pool, image: str, snapshot_id: int, name: str, options: ImageOptions) -> None:
    """Make an image whose content is an image's part of a group snapshot. See ``clone_image``."""

    def clone() -> None:
        rbd.RBD().clone(pool.ioctx, image, snapshot_id, pool.ioctx, name, **options.for_librbd())

    make_image(pool, name, f"cloning snapshot {snapshot_id} of {pool.spec(image)} to image", clone, options)


def _snapshots(pool: Pool, name: str) -> list[str]:
    return [str(one["name"]) for one in rbd.Group(pool.ioctx, name).list_snaps()]
