"""Chains of clones and snapshots, and how long they may get.

Every snapshot and every clone leaves the source with one more snapshot, out of sight, and the new image hangs on it.
librbd and the kernel open chains of 16 images and 510 snapshots of one. So a chain is cut early: the manager fills a
clone with its parent's data, and it stands alone. From the soft depth on that is done beside other work; at the hard
depth nothing more is made of a source before it is done, and the call is to be repeated (ABORTED).

What is filled is, where there is one, the image of a snapshot or one in between, which nobody writes to. Else it is
the new clone, and only at the hard depth the source itself, in use or not.
"""

import logging

from csi_host.errors import CsiError
from csi_host_rbd.ceph import image_names, parents, tasks
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.image import Image, Snapshot, SnapshotNamespace
from csi_host_rbd.errors import FlattenPending, TooManySnapshots
from csi_host_rbd.image_naming import TEMPORARY_SUFFIX, uuid_in
from csi_host_rbd.limits import Limits
from csi_host_rbd.places import Place

log = logging.getLogger(__name__)

# What librbd calls an image's part of a group snapshot.
_PART_OF_GROUP = ".group."


class Chains:
    """Keeps chains within the limits; ``manager_timeout`` is in seconds."""

    def __init__(self, limits: Limits, *, manager_timeout: float) -> None:
        self._limits = limits
        self._manager_timeout = manager_timeout

    def depth(self, place: Place, pool: Pool, image_id: str) -> int:
        """Return how many images an image hangs on. 1 operation, and 1 for each."""
        return parents.depth_of(pool, image_id, place.cluster.pool_at)

    def is_too_deep(self, depth: int) -> bool:
        """Whether nothing may be made of an image that hangs on this many."""
        return depth >= self._limits.hard_depth

    def is_getting_long(self, depth: int) -> bool:
        """Whether a chain of this depth is to be cut beside other work."""
        return depth >= self._limits.soft_depth

    def shorten(self, place: Place, pool: Pool, name: str, depth: int) -> None:
        """Have an image that hangs on ``depth`` others filled beside other work; a failure only delays that."""
        self._flatten_quietly(place, pool, name, because=f"its chain is {depth} images long")

    def check_depth(self, place: Place, pool: Pool, name: str, depth: int) -> None:
        """Raise FlattenPending when a clone of this image would be too deep; the chain is then being cut."""
        if not self.is_too_deep(depth + 1):
            return
        target_pool, target = self._to_flatten(place, pool, name)
        tasks.flatten(place.cluster.connection, target_pool, target, timeout=self._manager_timeout)
        raise FlattenPending(
            f"flatten in progress: image {pool.spec(name)} hangs on {depth} others, and a clone of it may hang on "
            f"{self._limits.hard_depth - 1}; {target_pool.spec(target)} is being flattened, ask again"
        )

    def hidden_parent(self, place: Place, pool: Pool, image_id: str) -> tuple[Pool, str] | None:
        """Return the image that an image hangs on, when it is one that nobody writes to and has a parent itself."""
        parent = parents.parent_of(pool, image_id)
        if parent is None:
            return None
        parent_pool = place.cluster.pool_at(parent.pool_id, parent.namespace)
        name = image_names.name_of(parent_pool, parent.image_id)
        if not name or not self._is_hidden(place, name) or not parents.has_parent(parent_pool, parent.image_id):
            return None
        return parent_pool, name

    def make_room(self, place: Place, pool: Pool, image: Image) -> None:
        """See to it that an image can have one more snapshot; raises TooManySnapshots. Free below the minimum."""
        snapshots = image.snapshots()
        if len(snapshots) <= self._limits.min_snapshots:
            return
        is_full = len(snapshots) > self._limits.max_snapshots
        surplus = snapshots if is_full else snapshots[self._limits.min_snapshots - 1 :]
        for snapshot in surplus:
            if snapshot.namespace is SnapshotNamespace.TRASH:
                for clone_pool, clone in _clones_of(place, pool, image, snapshot):
                    self._flatten_quietly(place, clone_pool, clone, because=f"{image.spec} has many snapshots")
        if is_full:
            raise TooManySnapshots(
                f"image {image.spec} has {len(snapshots)} snapshots, the limit is "
                f"{self._limits.max_snapshots}; the clones that hang on them are being flattened"
            )

    def _to_flatten(self, place: Place, pool: Pool, name: str) -> tuple[Pool, str]:
        if self._is_hidden(place, name):
            return pool, name
        return self.hidden_parent(place, pool, image_names.read_image_id(pool, name)) or (pool, name)

    def _is_hidden(self, place: Place, name: str) -> bool:
        if name.endswith(TEMPORARY_SUFFIX):
            return True
        found = place.snapshots.read(uuid_in(name))
        return found is not None and found.image_name == name

    def _flatten_quietly(self, place: Place, pool: Pool, name: str, *, because: str) -> None:
        try:
            tasks.flatten(place.cluster.connection, pool, name, timeout=self._manager_timeout)
        except CsiError as error:
            log.warning(f"{pool.spec(name)} could not be flattened, though {because}: {error}")


def _clones_of(place: Place, pool: Pool, image: Image, snapshot: Snapshot) -> list[tuple[Pool, str]]:
    if not snapshot.original_name.startswith(_PART_OF_GROUP):
        # It is called as the clone that was made of it.
        return [(pool, snapshot.original_name)]
    found = []
    parent = parents.Parent(
        pool_id=pool.pool_id, namespace=pool.namespace, image_id=image.image_id, snapshot_id=snapshot.snapshot_id
    )
    for pool_id, namespace, image_id in parents.children_of(pool, parent):
        clone_pool = place.cluster.pool_at(pool_id, namespace)
        name = image_names.name_of(clone_pool, image_id)
        found += [(clone_pool, name)] if name else []
    return found
