"""Open images: looked at, grown, snapshots made and removed.

Every OSD operation ends within the connection's timeout, but librbd also waits for things that are none: a watch to
be registered, another client to give the exclusive lock up. So its calls run on helper threads with a bound. One that
passed it may still be at work: until it has ended, more calls on this image are refused.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import partial
from typing import Any, Protocol, TypeVar

from csi_host_rbd.ceph.bindings import rbd
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.failures import BackendUnavailable, ImageNotFound, ImageReadOnly, translated
from csi_host_rbd.ceph.metadata import remove_key, set_key

T = TypeVar("T")

# How much of an image one question for its allocated extents covers, before it is seen whether that is enough.
_WINDOW_BYTES = 4 * 1024**3


@dataclass(frozen=True, kw_only=True)
class Watcher:
    """A client that has an image open."""

    address: str
    client_id: int

    def __str__(self) -> str:
        return f"client.{self.client_id} at {self.address}"


class SnapshotNamespace(StrEnum):
    """Who a snapshot is for; librbd has removed one that is TRASH for everybody but the clones that hang on it."""

    USER = "user"
    GROUP = "group"
    TRASH = "trash"
    MIRROR = "mirror"


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A snapshot of an open image; ``original_name`` is what one in the trash was called, else its name."""

    snapshot_id: int
    name: str
    namespace: SnapshotNamespace
    original_name: str


@dataclass(frozen=True, kw_only=True)
class Mirroring:
    """Whether an image is mirrored to another cluster, and whether this one is its primary."""

    is_enabled: bool
    is_primary: bool


class _Calls(Protocol):
    """What runs the calls of an open image, one after the other."""

    def call(self, step: str, function: Callable[[], T], *, timeout: float) -> T:
        """Return ``function()``; raises BackendTimeout after ``timeout`` seconds."""
        ...


class _AtOnce:
    """Runs them where it is told to: on a thread whose time is bounded as a whole."""

    def call(self, step: str, function: Callable[[], T], *, timeout: float) -> T:  # noqa: ARG002 (as the protocol has it)
        return function()


class Image:
    """An open image. Sizes are in bytes; what librbd keeps in memory of an open image costs no operation.

    ``spec`` is its name as ``rbd`` writes it, ``pool[/namespace]/image``.
    """

    def __init__(self, handle: Any, pool: Pool, spec: str, *, read_only: bool, calls: _Calls) -> None:
        self._handle = handle
        self._pool = pool
        self.spec = spec
        self._read_only = read_only
        self._calls = calls

    @property
    def image_id(self) -> str:
        """The id, which the image keeps through renames and in the trash."""
        return str(self._do("reading the id of image", self._handle.id))

    @property
    def size_bytes(self) -> int:
        """The size of the image."""
        return int(self._do("reading the size of image", self._handle.size))

    @property
    def features(self) -> int:
        """Librbd's feature bits."""
        return int(self._do("reading the features of image", self._handle.features))

    @property
    def created_at(self) -> datetime:
        """When the image was made; a time without zone, in UTC."""
        found: datetime = self._do("reading the time of creation of image", self._handle.create_timestamp)
        return found

    def snapshots(self) -> list[Snapshot]:
        """Return all snapshots, oldest first, those that librbd keeps in its trash included."""
        return self._do("listing the snapshots of image", self._snapshots)

    def user_snapshots(self) -> list[str]:
        """Return the names of the snapshots that somebody made and can name, oldest first."""
        return [one.name for one in self.snapshots() if one.namespace is SnapshotNamespace.USER]

    def _snapshots(self) -> list[Snapshot]:
        return [self._snapshot(entry) for entry in sorted(self._handle.list_snaps(), key=_snapshot_id)]

    def _snapshot(self, entry: Mapping[str, Any]) -> Snapshot:
        namespace = _NAMESPACES.get(int(entry["namespace"]), SnapshotNamespace.MIRROR)
        name = str(entry["name"])
        is_trashed = namespace is SnapshotNamespace.TRASH
        original = self._handle.snap_get_trash_namespace(entry["id"])["original_name"] if is_trashed else name
        return Snapshot(snapshot_id=int(entry["id"]), name=name, namespace=namespace, original_name=str(original))

    def watchers(self) -> list[Watcher]:
        """Return who else has the image open: the watch of this very opening is left out. 1 operation."""
        found = [
            Watcher(address=str(one["addr"]), client_id=int(one["id"]))
            for one in self._do("listing the watchers of image", lambda: list(self._handle.watchers_list()))
        ]
        # A read-only opening registers no watch; another opening of this process does, and counts.
        ours = next((one for one in found if one.client_id == self._pool.client_id), None)
        if ours is not None and not self._read_only:
            found.remove(ours)
        return found

    def mirroring(self) -> Mirroring:
        """Return the state of mirroring. 1 operation."""
        state = self._do("reading the state of mirroring of image", self._handle.mirror_image_get_info)
        return Mirroring(is_enabled=state["state"] == rbd.RBD_MIRROR_IMAGE_ENABLED, is_primary=bool(state["primary"]))

    def is_replaying(self) -> bool:
        """Whether a mirror daemon of this cluster is up and copies the image from its primary."""
        status = self._do("reading the status of mirroring of image", self._handle.mirror_image_get_status)
        return bool(status["up"]) and status["state"] == rbd.MIRROR_IMAGE_STATUS_STATE_REPLAYING

    def group(self) -> str:
        """Return the name of the group that the image is in, "" for none. 2 operations."""
        return str(self._do("reading the group of image", self._handle.group)["name"])

    def metadata(self) -> dict[str, str]:
        """Return all metadata, librbd's own settings (``conf_…``) included. 1 operation for 64 keys."""
        return {str(name): str(value) for name, value in self._do("reading the metadata of image", self._metadata)}

    def _metadata(self) -> list[tuple[str, str]]:
        try:
            return list(self._handle.metadata_list())
        except AttributeError as error:
            # What the binding (16.2) raises for every failure here, on the way to naming the image in its message.
            raise BackendUnavailable(f"reading the metadata of image {self.spec}: Ceph did not answer") from error

    def set_metadata(self, name: str, value: str) -> None:
        """Write one key of the metadata, whoever has the image's exclusive lock; see metadata. 1 operation."""
        self._change(f"writing metadata {name} of image", lambda: set_key(self._pool, self._handle, name, value))

    def remove_metadata(self, name: str) -> None:
        """Remove one key of the metadata; fine when there is none. 1 operation."""
        self._change(f"removing metadata {name} of image", lambda: remove_key(self._pool, self._handle, name))

    def create_snapshot(self, name: str) -> None:
        """Take a snapshot; raises ImageExists. 8 operations and one round of the monitors, which may take a second."""
        self._change(f"taking snapshot {name} of image", lambda: self._handle.create_snap(name))

    def remove_snapshot(self, name: str) -> None:
        """Remove a snapshot; fine when there is none. One that clones hang on goes to librbd's trash. 7 operations."""
        with suppress(ImageNotFound):
            self._change(f"removing snapshot {name} of image", lambda: self._handle.remove_snap(name))

    def flatten(self) -> None:
        """Copy what the image shares with its parent, so that it stands alone; its size decides how long it takes."""
        self._change("flattening image", self._handle.flatten)

    def resize(self, size_bytes: int) -> None:
        """Grow the image; librbd refuses to shrink it."""
        self._change("growing image", lambda: self._handle.resize(size_bytes, allow_shrink=False))

    def allocated_extents(self, *, limit: int = 0) -> list[tuple[int, int]]:
        """Return the (offset, length) of every extent that was ever written, in order; a parent's count too.

        With a ``limit`` the search ends soon after that many were found. Costs one operation an object where the image
        has no fast-diff.
        """
        extents: list[tuple[int, int]] = []

        def note(offset: int, length: int, exists: bool) -> None:
            if exists:
                extents.append((offset, length))

        size_bytes = self.size_bytes
        for start in range(0, size_bytes, _WINDOW_BYTES):
            length = min(_WINDOW_BYTES, size_bytes - start)
            self._do(
                "listing what is allocated of image", partial(self._handle.diff_iterate, start, length, None, note)
            )
            if limit and len(extents) >= limit:
                break
        return extents

    def read(self, offset: int, length: int) -> bytes:
        """Return the bytes at ``offset`` as far as the image has them; few enough for one operation."""
        end = min(offset + length, self.size_bytes)
        if end <= offset:
            return b""
        return bytes(self._do("reading image", lambda: self._handle.read(offset, end - offset)))

    def _do(self, action: str, function: Callable[[], T]) -> T:
        step = f"{action} {self.spec}"
        with translated(step):
            return self._calls.call(step, function, timeout=self._pool.call_seconds)

    def _change(self, action: str, function: Callable[[], None]) -> None:
        if self._read_only:
            raise ImageReadOnly(f"{action} {self.spec}: it was opened for reading only")
        try:
            with self._pool.writes.step(f"{action} {self.spec}"):
                self._do(action, function)
        except ImageReadOnly as error:
            # librbd says so too when it got no answer, or no exclusive lock: then it may work later.
            raise BackendUnavailable(
                f"{action} {self.spec}: it could not be locked for writing (Ceph does not answer, another "
                "client holds it, or it is a mirror's secondary)"
            ) from error


@contextmanager
def open_image(
    pool: Pool, *, name: str | None = None, image_id: str | None = None, read_only: bool = False
) -> Iterator[Image]:
    """Open an image by name or by id; raises ImageNotFound, also for the remnants of one.

    11 operations read-only, 13 read-write, as that registers a watch.
    """
    spec = pool.spec(name or f"id {image_id}")
    helper = pool.image_threads.start(spec)
    handle: list[Any] = []

    def open_() -> None:
        # Kept here, not returned: when nobody waits any more, the last call still closes it.
        handle.append(rbd.Image(pool.ioctx, name=name, image_id=image_id, read_only=read_only))

    def close() -> None:
        for one in handle:
            one.close()

    try:
        with translated(f"opening image {spec}"):
            helper.call(f"opening image {spec}", open_, timeout=pool.call_seconds)
        yield Image(handle[0], pool, spec, read_only=read_only, calls=helper)
    finally:
        with translated(f"closing image {spec}"):
            helper.end(close, step=f"closing image {spec}", timeout=pool.call_seconds)


def look_at_image(pool: Pool, name: str, look: Callable[[Image], T]) -> T:
    """Open an image read-only, return what ``look`` finds out about it, and close it; raises ImageNotFound.

    11 operations and those of ``look``, all within the time of one call of librbd: they are made on one helper thread
    in one go, as going there and back for each costs more than most of them. ``look`` does nothing else there.
    """
    spec = pool.spec(name)

    def at_once() -> T:
        with rbd.Image(pool.ioctx, name=name, read_only=True) as handle:
            return look(Image(handle, pool, spec, read_only=True, calls=_AtOnce()))

    step = f"looking at image {spec}"
    with translated(step):
        return pool.image_threads.call(step, at_once, timeout=pool.call_seconds, target=spec)


_NAMESPACES = {
    rbd.RBD_SNAP_NAMESPACE_TYPE_USER: SnapshotNamespace.USER,
    rbd.RBD_SNAP_NAMESPACE_TYPE_GROUP: SnapshotNamespace.GROUP,
    rbd.RBD_SNAP_NAMESPACE_TYPE_TRASH: SnapshotNamespace.TRASH,
    rbd.RBD_SNAP_NAMESPACE_TYPE_MIRROR: SnapshotNamespace.MIRROR,
}


def _snapshot_id(entry: Mapping[str, Any]) -> int:
    return int(entry["id"])
