"""Images: made, opened, grown, put into the trash.

Every OSD operation ends within the connection's timeout, but librbd also waits for things that are none: a watch to
be registered, another client to give the exclusive lock up. So its calls run on helper threads with a bound. One that
passed it may still be at work: until it has ended, more calls on this image are refused.
"""

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

from csi_host_rbd.ceph.bindings import rados, rbd
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.failures import (
    BackendUnavailable,
    ImageNotFound,
    ImageReadOnly,
    NamespaceNotFound,
    ObjectNotFound,
    PoolNotFound,
    translated,
)
from csi_host_rbd.ceph.helpers import Helper

T = TypeVar("T")

_LENGTH = struct.Struct("<I")
_ID_OBJECT_PREFIX = "rbd_id."
_HEADER_PREFIX = "rbd_header."
_OBJECT_MAP_PREFIX = "rbd_object_map."
_DIRECTORY = "rbd_directory"
_NAME_KEY_PREFIX = "name_"
_ID_BYTES_LIMIT = 4096
# How much of an image one question for its allocated extents covers, before it is seen whether that is enough.
_WINDOW_BYTES = 4 * 1024**3


@dataclass(frozen=True, kw_only=True)
class CreateOptions:
    """What a new image is to be like; None and 0 leave the choice to librbd. ``order`` is log2 of the object size."""

    size_bytes: int
    features: int | None = None
    order: int | None = None
    stripe_unit_bytes: int = 0
    stripe_count: int = 0
    data_pool: str = ""


@dataclass(frozen=True, kw_only=True)
class Watcher:
    """A client that has an image open."""

    address: str
    client_id: int

    def __str__(self) -> str:
        return f"client.{self.client_id} at {self.address}"


@dataclass(frozen=True, kw_only=True)
class Mirroring:
    """Whether an image is mirrored to another cluster, and whether this one is its primary."""

    is_enabled: bool
    is_primary: bool


class Image:
    """An open image. Sizes are in bytes; what librbd keeps in memory of an open image costs no operation."""

    def __init__(self, handle: Any, pool: Pool, spec: str, *, read_only: bool, helper: Helper) -> None:
        self._handle = handle
        self._pool = pool
        self._spec = spec
        self._read_only = read_only
        self._helper = helper

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

    def metadata(self) -> dict[str, str]:
        """Return all metadata, librbd's own settings (``conf_…``) included. 1 operation for 64 keys."""
        return {str(name): str(value) for name, value in self._do("reading the metadata of image", self._metadata)}

    def _metadata(self) -> list[tuple[str, str]]:
        try:
            return list(self._handle.metadata_list())
        except AttributeError as error:
            # What the binding (16.2) raises for every failure here, on the way to naming the image in its message.
            raise BackendUnavailable(f"reading the metadata of image {self._spec}: Ceph did not answer") from error

    def set_metadata(self, name: str, value: str) -> None:
        """Write one key of the metadata. 3 operations."""
        self._change(f"writing metadata {name} of image", lambda: self._handle.metadata_set(name, value))

    def remove_metadata(self, name: str) -> None:
        """Remove one key of the metadata; fine when there is none."""
        # The binding says that there is none with the builtin KeyError.
        with suppress(KeyError):
            self._change(f"removing metadata {name} of image", lambda: self._handle.metadata_remove(name))

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

    def _do(self, action: str, function: Callable[[], T]) -> T:
        step = f"{action} {self._spec}"
        with translated(step):
            return self._helper.call(step, function, timeout=self._pool.call_seconds)

    def _change(self, action: str, function: Callable[[], None]) -> None:
        try:
            self._do(action, function)
        except ImageReadOnly as error:
            if self._read_only:
                raise
            # librbd says so too when it got no answer, or no exclusive lock: then it may work later.
            raise BackendUnavailable(
                f"{action} {self._spec}: it could not be locked for writing (Ceph does not answer, another "
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
        yield Image(handle[0], pool, spec, read_only=read_only, helper=helper)
    finally:
        with translated(f"closing image {spec}"):
            helper.end(close, step=f"closing image {spec}", timeout=pool.call_seconds)


def create_image(pool: Pool, name: str, options: CreateOptions) -> None:
    """Make an image. 7 operations, one more with an object map.

    Raises ImageExists, NamespaceNotFound, PoolNotFound (the data pool), ArgumentRefused.
    """
    try:
        _call(pool, name, "creating image", lambda: _create(pool, name, options))
    except ImageNotFound as error:
        if options.data_pool and not pool.has_sibling(options.data_pool):
            raise PoolNotFound(f"the data pool {options.data_pool!r} does not exist in the cluster") from error
        if pool.namespace:
            raise NamespaceNotFound(f"pool {pool.name} has no RADOS namespace {pool.namespace!r}") from error
        raise


def _create(pool: Pool, name: str, options: CreateOptions) -> None:
    rbd.RBD().create(
        pool.ioctx,
        name,
        options.size_bytes,
        order=options.order,
        old_format=False,
        features=options.features,
        stripe_unit=options.stripe_unit_bytes or None,
        stripe_count=options.stripe_count or None,
        data_pool=options.data_pool or None,
    )


def read_image_id(pool: Pool, name: str) -> str:
    """Return an image's id without opening it; raises ImageNotFound. 1 operation.

    librbd keeps it in the object ``rbd_id.<name>``: a little-endian 32-bit length, then the text.
    """
    spec = pool.spec(name)
    try:
        with translated(f"reading the id of image {spec}"):
            content: bytes = pool.ioctx.read(_ID_OBJECT_PREFIX + name, _ID_BYTES_LIMIT)
    except ObjectNotFound as error:
        raise ImageNotFound(f"image {spec} does not exist") from error
    image_id = _unpacked(content)
    if not image_id:
        raise ImageNotFound(f"image {spec} has no id: its creation was cut off")
    return image_id


def image_exists(pool: Pool, name: str) -> bool:
    """Whether the pool has an image of that name, or the remnants of one. 1 operation."""
    return _has_object(pool, _ID_OBJECT_PREFIX + name, pool.spec(name))


def remove_remnants(pool: Pool, name: str) -> None:
    """Remove what a cut-off creation or removal left of an image, so that its name is free. 2 operations for nothing.

    Such are the object with the id, and the name in the pool's directory, each without an image or with one that is
    in the trash already (librbd puts it there first). Raises BackendUnavailable when there is a whole image after all:
    that is never touched.
    """
    spec = pool.spec(name)
    try:
        image_id = read_image_id(pool, name)
    except ImageNotFound:
        image_id = ""
    listed_id = _id_in_directory(pool, name)
    for one in {image_id, listed_id} - {""}:
        if not _has_object(pool, _HEADER_PREFIX + one, spec):
            _remove_object(pool, _OBJECT_MAP_PREFIX + one)
        elif not is_in_trash(pool, one):
            raise BackendUnavailable(f"image {spec} was to be cleared away as a remnant, but there is an image; retry")
    if listed_id:
        _forget_name(pool, name, listed_id)
    _remove_object(pool, _ID_OBJECT_PREFIX + name)


def _id_in_directory(pool: Pool, name: str) -> str:
    key = _NAME_KEY_PREFIX + name
    with translated(f"looking for image {pool.spec(name)} in the directory"), rados.ReadOpCtx() as operation:
        values, _ = pool.ioctx.get_omap_vals_by_keys(operation, (key,))
        try:
            pool.ioctx.operate_read_op(operation, _DIRECTORY)
        except rados.ObjectNotFound:
            return ""
        return next((_unpacked(value or b"") for _, value in values), "")


def _forget_name(pool: Pool, name: str, image_id: str) -> None:
    # The class compares both directions of the entry itself, so that no newer one is removed.
    entry = _packed(name) + _packed(image_id)
    try:
        with translated(f"removing image {pool.spec(name)} from the directory"):
            pool.ioctx.execute(_DIRECTORY, "rbd", "dir_remove_image", entry)
    except ObjectNotFound:
        return


def trash_move(pool: Pool, name: str) -> None:
    """Put an image into the trash, to be removed at any time; raises ImageNotFound, ImageBusy. 19 operations."""
    _call(pool, name, "moving to the trash image", lambda: rbd.RBD().trash_move(pool.ioctx, name, 0))


def is_in_trash(pool: Pool, image_id: str) -> bool:
    """Whether the trash of the pool has an image of that id. 1 operation."""
    try:
        _call(pool, image_id, "looking in the trash for image", lambda: rbd.RBD().trash_get(pool.ioctx, image_id))
    except ImageNotFound:
        return False
    return True


def find_in_trash(pool: Pool, name: str) -> list[str]:
    """Return the ids of the images in the trash that had this name; reads it all, so only where no id is known."""
    entries = _call(pool, name, "looking through the trash for image", lambda: list(rbd.RBD().trash_list(pool.ioctx)))
    return [str(entry["id"]) for entry in entries if entry["name"] == name]


def remove_from_trash(pool: Pool, image_id: str) -> None:
    """Remove an image from the trash here and now, object by object; fine when it is gone."""
    try:
        _call(
            pool,
            image_id,
            "removing from the trash image",
            lambda: rbd.RBD().trash_remove(pool.ioctx, image_id, force=True),
        )
    except ImageNotFound:
        return


def _call(pool: Pool, name: str, action: str, function: Callable[[], T]) -> T:
    spec = pool.spec(name)
    with translated(f"{action} {spec}"):
        return pool.image_threads.call(f"{action} {spec}", function, timeout=pool.call_seconds, target=spec)


def _packed(text: str) -> bytes:
    content = text.encode()
    return _LENGTH.pack(len(content)) + content


def _unpacked(content: bytes) -> str:
    if len(content) < _LENGTH.size:
        return ""
    (length,) = _LENGTH.unpack_from(content)
    return content[_LENGTH.size : _LENGTH.size + length].decode(errors="replace")


def _has_object(pool: Pool, object_name: str, spec: str) -> bool:
    try:
        with translated(f"looking for image {spec}"):
            pool.ioctx.stat(object_name)
    except ObjectNotFound:
        return False
    return True


def _remove_object(pool: Pool, object_name: str) -> None:
    try:
        with translated(f"removing object {pool.name}/{object_name}"):
            pool.ioctx.remove_object(object_name)
    except ObjectNotFound:
        return
