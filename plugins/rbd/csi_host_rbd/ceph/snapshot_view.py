"""An image as it was at one of its snapshots, opened by ids: by name it may be in the trash, and its snapshot as well.

What is learnt on the way is kept in bounds: a question for allocated extents whose answer is too long is asked again
for two halves.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypeVar

from csi_host.errors import CsiError
from csi_host.request import seconds_for
from csi_host_rbd.ceph.bindings import rbd
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.extents import Extent, Layout
from csi_host_rbd.ceph.failures import translated
from csi_host_rbd.ceph.helpers import Helper

T = TypeVar("T")

# About two megabytes of Python's objects.
_EXTENTS_AT_ONCE = 16 * 1024
# What a callback ends librbd's search with; any negative number does.
_ENOUGH = -1


class SnapshotView:
    """An image opened read-only at a snapshot; sizes are in bytes."""

    def __init__(self, handle: Any, pool: Pool, spec: str, helper: Helper, *, extents_at_once: int) -> None:
        self._handle = handle
        self._extents_at_once = extents_at_once
        self._pool = pool
        self._spec = spec
        self._helper = helper

    @property
    def size_bytes(self) -> int:
        """The size that the image had."""
        return int(self._do("reading the size of", self._handle.size))

    @property
    def features(self) -> int:
        """Librbd's feature bits."""
        return int(self._do("reading the features of", self._handle.features))

    @property
    def created_at(self) -> datetime:
        """When the image was made; a time without zone, in UTC."""
        found: datetime = self._do("reading the time of creation of", self._handle.create_timestamp)
        return found

    @property
    def data_pool_id(self) -> int:
        """The id of the pool that has the data."""
        return int(self._do("reading the data pool of", self._handle.data_pool_id))

    @property
    def object_prefix(self) -> str:
        """What the names of the objects with the data begin with."""
        return str(self._do("reading the prefix of", lambda: self._handle.stat()["block_name_prefix"]))

    @property
    def layout(self) -> Layout:
        """How the bytes are spread over the objects."""
        return self._do("reading the layout of", self._layout)

    def _layout(self) -> Layout:
        return Layout(
            object_bytes=int(self._handle.stat()["obj_size"]),
            stripe_unit_bytes=int(self._handle.stripe_unit()),
            stripe_count=int(self._handle.stripe_count()),
        )

    def allocated(self, start: int, end: int) -> Iterator[Extent]:
        """Yield what has ever been written between two offsets, in order; what the parents have counts.

        1 operation an object of this image and of each parent.
        """
        found: list[Extent] = []

        def note(offset: int, length: int, exists: bool) -> int:
            if exists:
                found.append(Extent(offset, length))
            return _ENOUGH if self._is_too_long(found, end - start) else 0

        try:
            self._do("listing what is allocated of", lambda: self._handle.diff_iterate(start, end - start, None, note))
        except CsiError:
            if not self._is_too_long(found, end - start):
                raise
            found.clear()
            middle = start + (end - start) // 2
            yield from self.allocated(start, middle)
            yield from self.allocated(middle, end)
        yield from found

    def _is_too_long(self, found: list[Extent], length: int) -> bool:
        return len(found) > self._extents_at_once and length > 1

    def _do(self, action: str, function: Callable[[], T]) -> T:
        step = f"{action} {self._spec}"
        with translated(step):
            timeout = seconds_for(step, at_most=self._pool.call_seconds)
            return self._helper.call(step, function, timeout=timeout)


@contextmanager
def open_at(
    pool: Pool, image_id: str, snapshot_id: int | None, *, extents_at_once: int = _EXTENTS_AT_ONCE
) -> Iterator[SnapshotView]:
    """Open an image by id at a snapshot, or as it is now; raises ImageNotFound, also when there is no such snapshot.

    It is opened for reading only, so that no lock is taken from whoever writes to it.
    """
    spec = pool.spec(f"id {image_id}" + (f" at snapshot {snapshot_id}" if snapshot_id is not None else ""))
    helper = pool.image_threads.start()
    handle: list[Any] = []

    def open_() -> None:
        # Kept here, not returned: when nobody waits any more, the last call still closes it.
        handle.append(rbd.Image(pool.ioctx, image_id=image_id, read_only=True))
        if snapshot_id is not None:
            handle[0].set_snap_by_id(snapshot_id)

    def close() -> None:
        for one in handle:
            one.close()

    step = f"opening image {spec}"
    try:
        with translated(step):
            helper.call(step, open_, timeout=seconds_for(step, at_most=pool.call_seconds))
        yield SnapshotView(handle[0], pool, f"image {spec}", helper, extents_at_once=extents_at_once)
    finally:
        with translated(f"closing image {spec}"):
            helper.end(close, step=f"closing image {spec}", timeout=pool.call_seconds)
