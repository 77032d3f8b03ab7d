"""What changed in an image from one of its snapshots to another, by whatever the image has for finding it out.

* ``FastDiff`` reads the object maps at the snapshots in between: three operations a snapshot for 64 Ki objects. It is
  for images with the feature fast-diff whose maps are whole.
* ``VersionDiff`` asks for the version of every object at both snapshots. It needs nothing of the image.

Both find whole objects. librbd's own search is used by neither: up to 18.2.4 it begins at a snapshot's name among the
user's, and what a CSI snapshot is a clone of lies in librbd's trash.

The maps do not say what ``rbd snap rollback`` changed (librbd copies the map of the snapshot it goes back to; its own
fast-diff misses the same). CSI has no such thing: who does it by hand makes a full backup next.

Neither sees a change of what shows through of the image's own parent: that is ``LostOverlap``. An image that was
flattened or made smaller in between shows less of it afterwards.

Each ``extents(start, end)`` answers for a window of the image. Nothing is remembered from one to the next, so any
offset is as good as another to begin with.
"""

import heapq
from collections.abc import Iterable, Sequence
from typing import Protocol

from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.extents import Extent, Layout, clipped, merged
from csi_host_rbd.ceph.failures import BackendUnavailable, ImageNotFound, ObjectNotFound
from csi_host_rbd.ceph.object_map import ObjectMapDamaged, ObjectStates, changed, marks, read_states
from csi_host_rbd.ceph.object_versions import ObjectVersions
from csi_host_rbd.ceph.snapshot_headers import flags_at, snapshot_ids
from csi_host_rbd.ceph.snapshot_view import SnapshotView

_MAP_OBJECTS = 64 * 1024
_STAT_OBJECTS = 256
_ALLOCATED_BYTES = 1024**3
# Snapshots may be removed while the maps are read, one by one.
_ATTEMPTS = 5


class ObjectMapsUnusable(BackendUnavailable):
    """An object map is missing, invalid or damaged; something else must find the changes."""


class Finder(Protocol):
    """Finds extents within a window of an image; ``window_bytes`` is how much it answers for at once."""

    @property
    def window_bytes(self) -> int:
        """How much of the image one question may cover."""
        ...

    def extents(self, start: int, end: int) -> Iterable[Extent]:
        """Return what is found from ``start`` to ``end``, in order and not touching each other.

        Raises ObjectMapsUnusable, here and not later on.
        """
        ...


class ObjectMaps:
    """The object maps of one image at its snapshots."""

    def __init__(self, pool: Pool, image_id: str) -> None:
        self._pool = pool
        self._image_id = image_id

    def changed(self, base_id: int, target_id: int, objects: range) -> bytes:
        """Return a byte for each object, 1 for those that changed; raises ObjectMapsUnusable."""
        maps = self._read_all(base_id, target_id, objects)
        return marks(changed(maps[0], maps[1:]), len(objects))

    def existing(self, snapshot_id: int, objects: range) -> bytes:
        """Return a byte for each object, 1 for those that exist; raises ObjectMapsUnusable."""
        (states,) = self._read_all(snapshot_id, snapshot_id, objects)
        return marks(states.existing, len(objects))

    def _read_all(self, first_id: int, last_id: int, objects: range) -> list[ObjectStates]:
        """Return the maps of two snapshots and all in between, in order."""
        for _ in range(_ATTEMPTS):
            known = snapshot_ids(self._pool, self._image_id)
            if first_id not in known or last_id not in known:
                break
            within = [one for one in known if first_id <= one <= last_id]
            try:
                found = [read_states(self._pool, self._image_id, one, objects) for one in within]
                # Asked for afterwards: a map that is made anew is marked invalid before it is there to be read.
                self._check(within)
            except (ObjectNotFound, ImageNotFound):
                continue
            except ObjectMapDamaged as reason:
                raise ObjectMapsUnusable(str(reason)) from reason
            return found
        raise ObjectMapsUnusable(f"image {self._pool.spec(f'id {self._image_id}')} lacks object maps at its snapshots")

    def _check(self, snapshots: Sequence[int]) -> None:
        for one in snapshots:
            if flags_at(self._pool, self._image_id, one):
                spec = self._pool.spec(f"id {self._image_id}")
                raise ObjectMapsUnusable(f"image {spec}: the object map at snapshot {one} is marked invalid")


class FastDiff:
    """What changed between two snapshots, by the object maps."""

    def __init__(self, maps: ObjectMaps, layout: Layout, *, base_id: int, target_id: int) -> None:
        self._maps = maps
        self._layout = layout
        self._base_id = base_id
        self._target_id = target_id

    @property
    def window_bytes(self) -> int:
        """How much of the image one question may cover."""
        return _MAP_OBJECTS * self._layout.object_bytes

    def extents(self, start: int, end: int) -> Iterable[Extent]:
        """Return what changed from ``start`` to ``end``; raises ObjectMapsUnusable."""
        objects = self._layout.objects_of(start, end)
        found = self._maps.changed(self._base_id, self._target_id, objects)
        return clipped(self._layout.extents_of(objects.start, found), start, end)


class MappedObjects:
    """What an image without a parent has at a snapshot, by the object map."""

    def __init__(self, maps: ObjectMaps, layout: Layout, *, snapshot_id: int) -> None:
        self._maps = maps
        self._layout = layout
        self._snapshot_id = snapshot_id

    @property
    def window_bytes(self) -> int:
        """How much of the image one question may cover."""
        return _MAP_OBJECTS * self._layout.object_bytes

    def extents(self, start: int, end: int) -> Iterable[Extent]:
        """Return what is allocated from ``start`` to ``end``; raises ObjectMapsUnusable."""
        objects = self._layout.objects_of(start, end)
        found = self._maps.existing(self._snapshot_id, objects)
        return clipped(self._layout.extents_of(objects.start, found), start, end)


class VersionDiff:
    """What changed between two snapshots, by the versions of the objects."""

    def __init__(self, versions: ObjectVersions, layout: Layout) -> None:
        self._versions = versions
        self._layout = layout

    @property
    def window_bytes(self) -> int:
        """How much of the image one question may cover."""
        return _STAT_OBJECTS * self._layout.object_bytes

    def extents(self, start: int, end: int) -> Iterable[Extent]:
        """Return what changed from ``start`` to ``end``."""
        objects = self._layout.objects_of(start, end)
        found = self._versions.changed(objects)
        return clipped(self._layout.extents_of(objects.start, found), start, end)


class Allocated:
    """What was ever written to an image up to a snapshot, its parents' part included, by librbd's own search."""

    window_bytes = _ALLOCATED_BYTES

    def __init__(self, view: SnapshotView) -> None:
        self._view = view
        self._size_bytes = view.size_bytes

    def extents(self, start: int, end: int) -> Iterable[Extent]:
        """Return what is allocated from ``start`` to ``end``."""
        end = min(end, self._size_bytes)
        return merged(self._view.allocated(start, end)) if start < end else ()


class LostOverlap:
    """What shows through of the parent at the base snapshot and no longer does at the target."""

    window_bytes = _ALLOCATED_BYTES

    def __init__(self, base: SnapshotView, *, base_overlap_bytes: int, target_overlap_bytes: int) -> None:
        self._allocated = Allocated(base)
        self._start = target_overlap_bytes
        self._end = base_overlap_bytes

    def extents(self, start: int, end: int) -> Iterable[Extent]:
        """Return what is lost from ``start`` to ``end``."""
        return self._allocated.extents(max(start, self._start), min(end, self._end))


class Union:
    """What any of several finders finds."""

    def __init__(self, *finders: Finder) -> None:
        self._finders = finders

    @property
    def window_bytes(self) -> int:
        """How much of the image one question may cover: what all can answer for."""
        return min(finder.window_bytes for finder in self._finders)

    def extents(self, start: int, end: int) -> Iterable[Extent]:
        """Return what is found from ``start`` to ``end``."""
        return merged(heapq.merge(*[finder.extents(start, end) for finder in self._finders]))
