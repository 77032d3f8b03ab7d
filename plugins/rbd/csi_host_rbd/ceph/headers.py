"""Images as their headers describe them, read without opening them.

Opening an image takes 11 operations, and 27 to 41 when it is a clone, as every parent is opened as well. Here the
header is 1 operation (size, age, the numbers of its snapshots), a snapshot 1 more, and a clone's parent 1 more. What is
a plain number is read from the header's keys, where it has been since the format exists; structures are asked of the
OSD's class, which is how librbd reads them.
"""

import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from csi_host_rbd.ceph.bindings import rados
from csi_host_rbd.ceph.class_calls import HEADER_PREFIX, ask_image
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.encoding import Decoder, EncodingInvalid, packed_u64
from csi_host_rbd.ceph.failures import ImageNotFound, ObjectNotFound, translated

T = TypeVar("T")

_SIZE, _CREATED, _PARENT = "size", "create_timestamp", "parent"
_SNAPSHOT_PREFIX = "snapshot_"
_METADATA_PREFIX = "metadata_"
_SNAPSHOTS_A_PAGE = 512
_USER_NAMESPACE = 0
_TRASH_NAMESPACE = 2
_NANOSECONDS = 1e9
_TIME = struct.Struct("<II")


@dataclass(frozen=True, kw_only=True)
class Header:
    """What an image's header says of it; ``created_at`` is in seconds since 1970, 0 where the header does not say."""

    image_id: str
    size_bytes: int
    created_at: float
    has_parent: bool
    snapshot_ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class HeaderSnapshot:
    """A snapshot in a header: somebody's (``is_user``), kept for clones (``is_trashed``), or of groups or mirroring."""

    snapshot_id: int
    name: str
    is_user: bool
    is_trashed: bool
    created_at: float
    child_count: int


def read_header(pool: Pool, image_id: str) -> Header:
    """Return an image's header; raises ImageNotFound. 1 operation for 512 snapshots."""
    numbers, snapshots = _header_keys(pool, image_id)
    ids = [_snapshot_number(key) for key in snapshots]
    while len(snapshots) == _SNAPSHOTS_A_PAGE:
        snapshots = _page(pool, HEADER_PREFIX + image_id, start_after=max(snapshots), prefix=_SNAPSHOT_PREFIX)
        ids += [_snapshot_number(key) for key in snapshots]
    return Header(
        image_id=image_id,
        size_bytes=int.from_bytes(numbers.get(_SIZE, b""), "little"),
        created_at=_seconds(numbers.get(_CREATED, b"")),
        has_parent=_PARENT in numbers,
        snapshot_ids=tuple(ids),
    )


def read_snapshot(pool: Pool, image_id: str, snapshot_id: int) -> HeaderSnapshot | None:
    """Return a snapshot of an image, None when it has gone. 1 operation."""
    try:
        return ask_image(pool, image_id, "snapshot_get", packed_u64(snapshot_id), _versioned(_snapshot))
    except ImageNotFound:
        return None


def user_snapshots(pool: Pool, header: Header) -> list[HeaderSnapshot]:
    """Return the snapshots that somebody made and can name. 1 operation each, those of other namespaces too."""
    return [snapshot for snapshot in all_snapshots(pool, header) if snapshot.is_user]


def all_snapshots(pool: Pool, header: Header) -> list[HeaderSnapshot]:
    """Return all snapshots of an image. 1 operation each."""
    found = (read_snapshot(pool, header.image_id, one) for one in header.snapshot_ids)
    return [snapshot for snapshot in found if snapshot is not None]


def has_metadata(pool: Pool, image_id: str, *names: str) -> bool:
    """Whether an image has one of these keys of metadata. 1 operation."""
    return bool(read_values(pool, HEADER_PREFIX + image_id, [_METADATA_PREFIX + name for name in names]))


def read_values(pool: Pool, name: str, keys: Sequence[str]) -> dict[str, bytes]:
    """Return those of ``keys`` that an object has, as they are; nothing when it is missing. 1 operation."""
    try:
        with _reading(pool, name) as operation:
            values, _ = pool.ioctx.get_omap_vals_by_keys(operation, tuple(keys))
            pool.ioctx.operate_read_op(operation, name)
            return _raw(values)
    except ObjectNotFound:
        return {}


def modified_at(pool: Pool, name: str) -> float | None:
    """Return when an object was last written, by its writer's clock; None when there is none. 1 operation.

    Writes through the Python bindings have no time unless one is given: then it is now, which nobody takes for old.
    """
    try:
        with translated(f"looking for object {pool.name}/{name}"):
            _, modified = pool.ioctx.stat(name)
    except ObjectNotFound:
        return None
    return time.mktime(modified) or time.time()


def read_time(answer: Decoder) -> float:
    """Read a time, in seconds since 1970."""
    return answer.u32() + answer.u32() / _NANOSECONDS


def _header_keys(pool: Pool, image_id: str) -> tuple[dict[str, bytes], dict[str, bytes]]:
    name = HEADER_PREFIX + image_id
    try:
        with _reading(pool, name) as operation:
            numbers, _ = pool.ioctx.get_omap_vals_by_keys(operation, (_SIZE, _CREATED, _PARENT))
            snapshots, _ = pool.ioctx.get_omap_vals(operation, "", _SNAPSHOT_PREFIX, _SNAPSHOTS_A_PAGE)
            pool.ioctx.operate_read_op(operation, name)
            return _raw(numbers), _raw(snapshots)
    except ObjectNotFound as error:
        raise ImageNotFound(f"image {pool.spec(f'id {image_id}')} has no header") from error


def _page(pool: Pool, name: str, *, start_after: str, prefix: str) -> dict[str, bytes]:
    with _reading(pool, name) as operation:
        values, _ = pool.ioctx.get_omap_vals(operation, start_after, prefix, _SNAPSHOTS_A_PAGE)
        pool.ioctx.operate_read_op(operation, name)
        return _raw(values)


@contextmanager
def _reading(pool: Pool, name: str) -> Iterator[Any]:
    with translated(f"reading object {pool.name}/{name}"), rados.ReadOpCtx() as operation:
        yield operation


def _raw(values: Any) -> dict[str, bytes]:
    return {key: bytes(value or b"") for key, value in values}


def _snapshot_number(key: str) -> int:
    return int(key.removeprefix(_SNAPSHOT_PREFIX), 16)


def _seconds(content: bytes) -> float:
    if len(content) < _TIME.size:
        return 0.0
    seconds, nanoseconds = _TIME.unpack_from(content)
    return float(seconds + nanoseconds / _NANOSECONDS)


def _snapshot(answer: Decoder) -> HeaderSnapshot:
    snapshot_id = answer.u64()
    namespace = answer.versioned(lambda one: one.u32())
    name = answer.text()
    answer.u64()  # the size
    return HeaderSnapshot(
        snapshot_id=snapshot_id,
        name=name,
        is_user=namespace == _USER_NAMESPACE,
        is_trashed=namespace == _TRASH_NAMESPACE,
        created_at=read_time(answer),
        child_count=answer.u32(),
    )


def _versioned(read: Callable[[Decoder], T]) -> Callable[[Decoder], T]:
    return lambda answer: answer.versioned(read)


def values_as_text(values: Mapping[str, bytes]) -> dict[str, str]:
    """Return the values of the directory's keys, which are texts in Ceph's encoding; "" for what is none."""
    return {key: _text(value) for key, value in values.items()}


def _text(content: bytes) -> str:
    try:
        return Decoder(content).text()
    except EncodingInvalid:
        return ""
