"""Which bytes of a snapshot are allocated, and which changed from one snapshot of a volume to another.

A CSI snapshot is an image of its own, a clone of a snapshot of the volume's image. So what changed between two of them
is what changed between the two snapshots of the volume's image, wherever that image is by now: it may be in the trash.
A snapshot that was flattened has let go of the volume's image. Then all that either of the two has is reported, which
is too much and never too little.

What is reported is checked after it was found and before it is handed out: both snapshots must still hang on the
volume's image. Otherwise they were deleted or flattened meanwhile, what was read may be of another time, and the call
ends with ABORTED: asked again, it goes on from where it was, or finds that there is no such snapshot.

Nothing is written, nothing locked, nothing kept between two calls: a crash leaves nothing behind.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from csi_host.errors import Aborted
from csi_host_rbd.backend import Cluster
from csi_host_rbd.block_search import Blocks, search
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.diff import (
    Allocated,
    FastDiff,
    Finder,
    LostOverlap,
    MappedObjects,
    ObjectMaps,
    Union,
    VersionDiff,
)
from csi_host_rbd.ceph.failures import ImageNotFound
from csi_host_rbd.ceph.image_names import read_image_id
from csi_host_rbd.ceph.object_versions import open_versions
from csi_host_rbd.ceph.parents import Parent, is_attached, parent_of
from csi_host_rbd.ceph.snapshot_headers import overlap_at
from csi_host_rbd.ceph.snapshot_view import SnapshotView, open_at
from csi_host_rbd.errors import SnapshotEncrypted, SnapshotNotFound, SnapshotsUnrelated
from csi_host_rbd.features import Feature
from csi_host_rbd.places import Places

log = logging.getLogger(__name__)

_BLOCK_ENCRYPTION = "block"


class SnapshotChanged(Aborted):
    """A snapshot was deleted or flattened while it was read."""


@dataclass(frozen=True, kw_only=True)
class _Snapshot:
    """A CSI snapshot; ``parent`` is the volume's image at the time, None once this one was flattened.

    ``volume`` tells its volume from others, also in the trash: the cluster, the place in it and the image's name.
    """

    handle: str
    pool: Pool
    image: str
    image_id: str
    volume: tuple[Sequence[str], int, str, str]
    parent: Parent | None


class ChangedBlocks:
    """The blocks of the snapshots of all clusters in the configuration."""

    def __init__(self, places: Places) -> None:
        self._places = places

    @contextmanager
    def allocated(self, handle: str, secrets: Mapping[str, str], *, start: int) -> Iterator[Blocks]:
        """Yield what is allocated of a snapshot from the offset ``start``; raises SnapshotNotFound, OutOfRange."""
        with ExitStack() as stack:
            cluster, snapshot = self._find(stack, "snapshot_id", handle, secrets)
            finders, size_bytes = _allocated_finders(stack, cluster, snapshot)
            yield search(finders, start=start, size_bytes=size_bytes, check=_check_of(cluster, snapshot))

    @contextmanager
    def delta(self, base: str, target: str, secrets: Mapping[str, str], *, start: int) -> Iterator[Blocks]:
        """Yield what differs between two snapshots of one volume from the offset ``start``.

        The size is the target's. Raises SnapshotNotFound, SnapshotsUnrelated, OutOfRange.
        """
        with ExitStack() as stack:
            _, older = self._find(stack, "base_snapshot_id", base, secrets)
            cluster, newer = self._find(stack, "target_snapshot_id", target, secrets)
            _check_same_volume(older, newer)
            finders, size_bytes = _delta_finders(stack, cluster, older, newer)
            yield search(finders, start=start, size_bytes=size_bytes, check=_check_of(cluster, older, newer))

    def _find(self, stack: ExitStack, field: str, handle: str, secrets: Mapping[str, str]) -> tuple[Cluster, _Snapshot]:
        place, found = stack.enter_context(self._places.snapshot(handle, secrets, field=field))
        if found.encryption_type == _BLOCK_ENCRYPTION:
            raise SnapshotEncrypted(
                f"{field}: the volume is encrypted as a block device, so the blocks of its image are not those of the "
                "volume; make a full backup"
            )
        try:
            # By name: an image in the trash is about to go.
            image_id = read_image_id(found.pool, found.image_name)
            parent = parent_of(found.pool, image_id)
        except ImageNotFound as reason:
            raise SnapshotNotFound(f"{field}: {handle}: {reason}") from reason
        volume = (place.cluster.config.monitors, found.pool.pool_id, found.pool.namespace, found.source)
        snapshot = _Snapshot(
            handle=handle,
            pool=found.pool,
            image=found.image_name,
            image_id=image_id,
            volume=volume,
            parent=parent,
        )
        return place.cluster, snapshot


def _check_same_volume(base: _Snapshot, target: _Snapshot) -> None:
    if base.volume != target.volume:
        raise SnapshotsUnrelated(
            f"base_snapshot_id: expected a snapshot of the same volume as target_snapshot_id's (image "
            f"{target.volume[-1]}), it is one of image {base.volume[-1]}"
        )
    if base.image_id == target.image_id:
        raise SnapshotsUnrelated("target_snapshot_id: expected another snapshot than base_snapshot_id")


def _allocated_finders(stack: ExitStack, cluster: Cluster, snapshot: _Snapshot) -> tuple[list[Finder], int]:
    if snapshot.parent is None:
        view = stack.enter_context(open_at(snapshot.pool, snapshot.image_id, None))
        return [Allocated(view)], view.size_bytes
    view = _open_parent(stack, cluster, snapshot.parent)
    finders: list[Finder] = [Allocated(view)]
    if view.features & Feature.OBJECT_MAP and not _overlap_bytes(cluster, snapshot.parent):
        maps = _maps(cluster, snapshot.parent)
        finders.insert(0, MappedObjects(maps, view.layout, snapshot_id=snapshot.parent.snapshot_id))
    return finders, view.size_bytes


def _delta_finders(stack: ExitStack, cluster: Cluster, base: _Snapshot, target: _Snapshot) -> tuple[list[Finder], int]:
    older, newer = base.parent, target.parent
    if older is None or newer is None or older.image_id != newer.image_id:
        return _finders_of_flattened(stack, base, target)
    if older.snapshot_id > newer.snapshot_id:
        raise SnapshotsUnrelated("target_snapshot_id: expected a snapshot that was taken after base_snapshot_id")
    view = _open_parent(stack, cluster, newer)
    layout = view.layout
    data_pool = cluster.pool_at(view.data_pool_id, newer.namespace)
    versions = stack.enter_context(
        open_versions(data_pool, view.object_prefix, base_id=older.snapshot_id, target_id=newer.snapshot_id)
    )
    finders: list[Finder] = [VersionDiff(versions, layout)]
    if view.features & Feature.FAST_DIFF:
        maps = _maps(cluster, newer)
        finders.insert(0, FastDiff(maps, layout, base_id=older.snapshot_id, target_id=newer.snapshot_id))
    before, after = _overlap_bytes(cluster, older), _overlap_bytes(cluster, newer)
    if before > after:
        base_view = _open_parent(stack, cluster, older)
        lost = LostOverlap(base_view, base_overlap_bytes=before, target_overlap_bytes=after)
        finders = [Union(finder, lost) for finder in finders]
    return finders, view.size_bytes


def _finders_of_flattened(stack: ExitStack, base: _Snapshot, target: _Snapshot) -> tuple[list[Finder], int]:
    """Return what finds all that either snapshot has: what both lack is zeros in both."""
    older = stack.enter_context(open_at(base.pool, base.image_id, None))
    newer = stack.enter_context(open_at(target.pool, target.image_id, None))
    if older.created_at > newer.created_at:
        raise SnapshotsUnrelated("target_snapshot_id: expected a snapshot that was taken after base_snapshot_id")
    log.info(f"{base.handle} or {target.handle} was flattened: all that either has counts as changed")
    return [Union(Allocated(older), Allocated(newer))], newer.size_bytes


def _open_parent(stack: ExitStack, cluster: Cluster, parent: Parent) -> SnapshotView:
    pool = cluster.pool_at(parent.pool_id, parent.namespace)
    return stack.enter_context(open_at(pool, parent.image_id, parent.snapshot_id))


def _overlap_bytes(cluster: Cluster, parent: Parent) -> int:
    return overlap_at(cluster.pool_at(parent.pool_id, parent.namespace), parent.image_id, parent.snapshot_id)


def _maps(cluster: Cluster, parent: Parent) -> ObjectMaps:
    return ObjectMaps(cluster.pool_at(parent.pool_id, parent.namespace), parent.image_id)


def _check_of(cluster: Cluster, *snapshots: _Snapshot) -> Callable[[], None]:
    """Return what raises SnapshotChanged when the snapshots are no longer what they were."""

    def check() -> None:
        for snapshot in snapshots:
            if not _is_unchanged(cluster, snapshot):
                raise SnapshotChanged(
                    f"snapshot {snapshot.handle} was deleted or flattened while it was read; ask again, starting at "
                    "the end of what was received"
                )

    return check


def _is_unchanged(cluster: Cluster, snapshot: _Snapshot) -> bool:
    try:
        if snapshot.parent is not None:
            return is_attached(snapshot.pool, snapshot.image_id, cluster.pool_at)
        # Its own data goes first when it is deleted, but before that its name does.
        return read_image_id(snapshot.pool, snapshot.image) == snapshot.image_id
    except ImageNotFound:
        return False
