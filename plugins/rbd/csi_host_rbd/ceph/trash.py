"""The trash of a pool: images that are to be removed, which takes a time that grows with their size."""

from csi_host_rbd.ceph.bindings import rbd
from csi_host_rbd.ceph.calls import call, write
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.failures import ImageNotFound


def trash_move(pool: Pool, name: str) -> None:
    """Put an image into the trash, to be removed at any time; raises ImageNotFound, ImageBusy. 19 operations."""
    write(pool, name, "moving to the trash image", lambda: rbd.RBD().trash_move(pool.ioctx, name, 0))


def is_in_trash(pool: Pool, image_id: str) -> bool:
    """Whether the trash of the pool has an image of that id. 1 operation."""
    try:
        call(pool, image_id, "looking in the trash for image", lambda: rbd.RBD().trash_get(pool.ioctx, image_id))
    except ImageNotFound:
        return False
    return True


def find_in_trash(pool: Pool, name: str) -> list[str]:
    """Return the ids of the images in the trash that had this name; reads it all, so only where no id is known."""
    entries = call(pool, name, "looking through the trash for image", lambda: list(rbd.RBD().trash_list(pool.ioctx)))
    return [str(entry["id"]) for entry in entries if entry["name"] == name]


def remove_from_trash(pool: Pool, image_id: str) -> None:
    """Remove an image from the trash here and now, object by object; fine when it is gone."""
    try:
        write(
            pool,
            image_id,
            "removing from the trash image",
            lambda: rbd.RBD().trash_remove(pool.ioctx, image_id, force=True),
        )
    except ImageNotFound:
        return
