"""What a new image is filled with: nothing, a snapshot, or another volume.

A volume is cloned from a snapshot that is taken for it, named like the new image and removed at once; librbd then
keeps it out of sight for as long as the clone needs it. ceph-csi puts an image in between (``-temp``), so that it can
be filled instead of the volume when the chain gets long; that costs a second snapshot, about a second of the monitors'
time, and a level of depth, and what both leave can be read, cloned and deleted by either.

A crash between two steps leaves the snapshot, or the clone as well. librbd makes a clone in three steps itself: one
that is not attached to its parent is never taken for whole (ceph/parents.py).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Protocol

from csi_host.locks import Operation, OperationLocks
from csi_host_rbd.ceph import parents
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.create import ImageOptions, SnapshotSpec, clone_image, create_image
from csi_host_rbd.ceph.image import Image, open_image
from csi_host_rbd.chains import Chains
from csi_host_rbd.content_source import SnapshotSource, Source, VolumeSource
from csi_host_rbd.encryption.keys import KeySource
from csi_host_rbd.encryption.service import Encryption
from csi_host_rbd.errors import SnapshotNotFound, SourceUnfit, VolumeNotFound
from csi_host_rbd.features import Feature
from csi_host_rbd.opening import opened
from csi_host_rbd.places import Place, Places, lock_key
from csi_host_rbd.reservations import Reservation

_SNAPSHOT_FIELD = "volume_content_source.snapshot.snapshot_id"


class Content(Protocol):
    """What one new image is filled with."""

    @property
    def size_bytes(self) -> int:
        """How big the image is at least."""
        ...

    @property
    def metadata(self) -> Mapping[str, str]:
        """What a clone inherits."""
        ...

    @property
    def key_source(self) -> KeySource | None:
        """Where the passphrase comes from; None for what is not encrypted."""
        ...

    def check(self) -> None:
        """Raise FlattenPending or TooManySnapshots when nothing can be made of it now."""
        ...

    def make(self, pool: Pool, name: str, size_bytes: int, options: ImageOptions) -> int:
        """Make the image and return its size; raises ImageExists, NamespaceNotFound, PoolNotFound, ArgumentRefused."""
        ...

    def settle(self, pool: Pool, name: str) -> None:
        """See to the chain of clones, when the image is whole."""
        ...

    def withdraw(self, name: str) -> None:
        """Take back what was put on the source: the image is whole, or is not made after all."""
        ...


class Blank:
    """Nothing: the image reads as zeros."""

    size_bytes = 0
    metadata: Mapping[str, str] = MappingProxyType({})
    key_source: KeySource | None = None

    def check(self) -> None:
        """There is nothing in the way."""

    def make(self, pool: Pool, name: str, size_bytes: int, options: ImageOptions) -> int:
        """Make an empty image. 7 operations."""
        create_image(pool, name, size_bytes, options)
        return size_bytes

    def settle(self, pool: Pool, name: str) -> None:
        """There is nothing to do."""

    def withdraw(self, name: str) -> None:
        """There is nothing to take back."""


class OfSnapshot:
    """A snapshot, which is an image with a snapshot of the same name on it."""

    def __init__(self, place: Place, source: Reservation, image: Image, chains: Chains) -> None:
        self._place = place
        self._source = source
        self._chains = chains
        self._depth = chains.depth(place, source.pool, image.image_id)
        self.size_bytes = image.size_bytes
        self.metadata = image.metadata()
        self.key_source: KeySource | None = None

    def check(self) -> None:
        """Raise FlattenPending when the chain is too long."""
        self._chains.check_depth(self._place, self._source.pool, self._source.image_name, self._depth)

    def make(self, pool: Pool, name: str, size_bytes: int, options: ImageOptions) -> int:  # noqa: ARG002 (as the protocol has it)
        """Clone it. 49 operations."""
        source = self._source
        clone_image(
            SnapshotSpec(pool=source.pool, image=source.image_name, snapshot=source.image_name), pool, name, options
        )
        return self.size_bytes

    def settle(self, pool: Pool, name: str) -> None:  # noqa: ARG002 (as the protocol has it)
        """Have the snapshot's image filled when the chain is getting long: nobody writes to it."""
        if self._chains.is_getting_long(self._depth + 1):
            self._chains.shorten(self._place, self._source.pool, self._source.image_name, self._depth)

    def withdraw(self, name: str) -> None:
        """There is nothing to take back: the snapshot is not touched."""


class Original(Protocol):
    """What a snapshot is made of: a volume, as it is now or as it was at a point in time."""

    place: Place
    source: Reservation
    key_source: KeySource | None

    def check_room(self) -> None:
        """Raise TooManySnapshots when the volume can have no more."""
        ...

    def make(self, pool: Pool, name: str, size_bytes: int, options: ImageOptions) -> int:
        """Make the snapshot's image and return its size; raises what ``Content.make`` does."""
        ...

    def withdraw(self, name: str) -> None:
        """Take back what was put on the volume for the image."""
        ...


class OfVolume:
    """What a volume holds now; ``image`` is the volume's, open for writing, ``source`` its reservation."""

    def __init__(self, place: Place, source: Reservation, image: Image, chains: Chains) -> None:
        self.place = place
        self.source = source
        self.features = image.features
        self._image = image
        self._chains = chains
        self._depth = chains.depth(place, source.pool, image.image_id)
        self.size_bytes = image.size_bytes
        self.metadata = image.metadata()
        self.key_source: KeySource | None = None

    def check(self) -> None:
        """Raise FlattenPending when the chain is too long, TooManySnapshots when the volume has too many."""
        self._chains.check_depth(self.place, self.source.pool, self.source.image_name, self._depth)
        self.check_room()

    def group(self) -> str:
        """Return the name of the group of librbd's that the image is in, "" for none."""
        return self._image.group()

    def check_room(self) -> None:
        """Raise TooManySnapshots when the volume can have no more."""
        self._chains.make_room(self.place, self.source.pool, self._image)

    def make(self, pool: Pool, name: str, size_bytes: int, options: ImageOptions) -> int:  # noqa: ARG002 (as the protocol has it)
        """Take a snapshot and clone it. 60 operations and one round of the monitors."""
        source = self.source
        self._take_snapshot(name)
        clone_image(SnapshotSpec(pool=source.pool, image=source.image_name, snapshot=name), pool, name, options)
        return self._image.size_bytes

    def settle(self, pool: Pool, name: str) -> None:
        """Have the chain cut when it is getting long."""
        if self._chains.is_getting_long(self._depth + 1):
            hidden = self._chains.hidden_parent(self.place, self.source.pool, self._image.image_id)
            self._chains.shorten(self.place, *(hidden or (pool, name)), self._depth + 1)

    def withdraw(self, name: str) -> None:
        """Remove the snapshot; a clone that hangs on it keeps it out of sight."""
        if name in self._image.user_snapshots():
            self._image.remove_snapshot(name)

    def _take_snapshot(self, name: str) -> None:
        # What a call that was cut off left; the clone is to hold what the volume holds now.
        self.withdraw(name)
        self._image.create_snapshot(name)


class Contents:
    """Finds what a source names."""

    def __init__(
        self, *, places: Places, chains: Chains, encryption: Encryption, operation_locks: OperationLocks
    ) -> None:
        self._places = places
        self._chains = chains
        self._encryption = encryption
        self._operations = operation_locks

    @contextmanager
    def opened(self, source: Source, place: Place, secrets: Mapping[str, str]) -> Iterator[Content]:
        """Yield the content, its source open and kept from being deleted (a volume: from growing) for as long.

        ``place`` is where the new volume goes. Raises SnapshotNotFound, VolumeNotFound, SourceUnfit.
        """
        match source:
            case None:
                yield Blank()
            case SnapshotSource(snapshot_id=handle):
                with self._of_snapshot(handle, place, secrets) as content:
                    yield content
            case VolumeSource(volume_id=handle):
                with self.of_volume(handle, place, secrets, Operation.CLONE) as content:
                    yield content

    @contextmanager
    def _of_snapshot(self, handle: str, target: Place, secrets: Mapping[str, str]) -> Iterator[Content]:
        with (
            self._operations.hold(Operation.RESTORE, lock_key(handle)),
            self._places.snapshot(handle, secrets, field=_SNAPSHOT_FIELD, operation=Operation.RESTORE) as (
                place,
                source,
            ),
        ):
            _check_cluster(place, target, f"snapshot {handle}")
            with opened(source, f"{_SNAPSHOT_FIELD}: {handle}", SnapshotNotFound, read_only=True) as image:
                content = OfSnapshot(place, source, image, self._chains)
            content.key_source = self._encryption.source_of(source, content.metadata, handle, secrets)
            yield content

    @contextmanager
    def of_volume(
        self, handle: str, target: Place | None, secrets: Mapping[str, str], operation: Operation
    ) -> Iterator["OfVolume"]:
        """Yield what a volume holds, for a clone of it (in ``target``) or for a snapshot (None)."""
        field = "source_volume_id" if target is None else "volume_content_source.volume.volume_id"
        with (
            self._operations.hold(operation, lock_key(handle)),
            self._places.volume(handle, secrets, field=field, operation=operation) as (place, source),
        ):
            if target is not None:
                _check_cluster(place, target, f"volume {handle}")
            with self.at(place, source, handle, secrets, field=field) as content:
                yield content

    @contextmanager
    def at(
        self, place: Place, source: Reservation, handle: str, secrets: Mapping[str, str], *, field: str
    ) -> Iterator["OfVolume"]:
        """Yield what the volume of a reservation holds; the caller has its locks.

        Raises VolumeNotFound, SourceUnfit.
        """
        with opened(source, f"{field}: {handle}", VolumeNotFound, read_only=False) as image:
            if not image.features & Feature.LAYERING:
                raise SourceUnfit(
                    f"image {image.spec} lacks the feature layering, without which no snapshot can be cloned"
                )
            content = OfVolume(place, source, image, self._chains)
            content.key_source = self._encryption.source_of(source, content.metadata, handle, secrets)
            yield content


def drop_source_snapshot(place: Place, pool: Pool, image_id: str, name: str) -> None:
    """Remove the snapshot that was taken for the clone ``name``, if it is still there. 1 operation for no clone."""
    parent = parents.parent_of(pool, image_id)
    if parent is None:
        return
    parent_pool = place.cluster.pool_at(parent.pool_id, parent.namespace)
    with open_image(parent_pool, image_id=parent.image_id, read_only=True) as source:
        is_there = name in source.user_snapshots()
    if is_there:
        with open_image(parent_pool, image_id=parent.image_id) as source:
            source.remove_snapshot(name)


def _check_cluster(source: Place, target: Place, what: str) -> None:
    ours, theirs = target.cluster.config, source.cluster.config
    if ours.monitors != theirs.monitors:
        raise SourceUnfit(
            f"volume_content_source: {what} is in the cluster {theirs.cluster_id!r}, and parameters[clusterID] names "
            f"{ours.cluster_id!r}"
        )
