"""What can be seen of images without opening them: one operation each, where an opening takes eleven.

The layouts are those of librbd's object class (``cls_rbd``): numbers are little-endian. The header object of an image
answers ``get_size`` with its order (8 bits) and size (64 bits), ``get_create_timestamp`` with seconds and nanoseconds
(32 bits each), and ``get_data_pool`` with an id or -1 (64 bits); the trash and the mirroring object of a pool have a
key for each image that they know.
"""

import struct
from collections.abc import Collection
from datetime import UTC, datetime

from csi_host_rbd.ceph import omap
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.failures import ImageNotFound, ObjectNotFound, translated

_CLASS = "rbd"
_HEADER_PREFIX = "rbd_header."
_TRASH = "rbd_trash"
_TRASH_KEY_PREFIX = "id_"
_MIRRORING = "rbd_mirroring"
_MIRRORING_KEY_PREFIX = "image_"
# The image itself and none of its snapshots (CEPH_NOSNAP).
_HEAD = struct.pack("<Q", 2**64 - 2)
_ORDER_AND_SIZE = struct.Struct("<BQ")
_SECONDS_AND_NANOSECONDS = struct.Struct("<II")
_SIGNED = struct.Struct("<q")


def read_size(pool: Pool, image_id: str) -> int:
    """Return the size of an image in bytes, also of one in the trash; raises ImageNotFound. 1 operation."""
    _, size_bytes = _unpacked(_ORDER_AND_SIZE, _ask(pool, image_id, "get_size", _HEAD), pool, image_id)
    return size_bytes


def read_created_at(pool: Pool, image_id: str) -> datetime:
    """Return when an image was made; raises ImageNotFound. 1 operation."""
    answer = _ask(pool, image_id, "get_create_timestamp", b"")
    seconds, nanoseconds = _unpacked(_SECONDS_AND_NANOSECONDS, answer, pool, image_id)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=nanoseconds // 1000)


def read_data_pool_id(pool: Pool, image_id: str) -> int | None:
    """Return the id of the pool that holds an image's data, None when it is the image's own. 1 operation."""
    (data_pool_id,) = _unpacked(_SIGNED, _ask(pool, image_id, "get_data_pool", b""), pool, image_id)
    return None if data_pool_id < 0 else data_pool_id


def trashed_among(pool: Pool, image_ids: Collection[str]) -> frozenset[str]:
    """Return which of the images lie in the trash of the pool. 1 operation for all."""
    return _with_key_among(pool, _TRASH, _TRASH_KEY_PREFIX, image_ids)


def mirrored_among(pool: Pool, image_ids: Collection[str]) -> frozenset[str]:
    """Return which of the images are mirrored to another cluster. 1 operation for all."""
    return _with_key_among(pool, _MIRRORING, _MIRRORING_KEY_PREFIX, image_ids)


def _with_key_among(pool: Pool, name: str, prefix: str, image_ids: Collection[str]) -> frozenset[str]:
    if not image_ids:
        return frozenset()
    try:
        keys = omap.read_keys(pool, name, [prefix + image_id for image_id in image_ids])
    except ObjectNotFound:
        return frozenset()
    return frozenset(key.removeprefix(prefix) for key in keys)


def _ask(pool: Pool, image_id: str, method: str, arguments: bytes) -> bytes:
    spec = pool.spec(f"id {image_id}")
    try:
        with translated(f"asking for {method} of image {spec}"):
            _, answer = pool.ioctx.execute(_HEADER_PREFIX + image_id, _CLASS, method, arguments)
    except ObjectNotFound as error:
        raise ImageNotFound(f"image {spec} does not exist") from error
    return bytes(answer)


def _unpacked(layout: struct.Struct, answer: bytes, pool: Pool, image_id: str) -> tuple[int, ...]:
    # The binding hands back its whole buffer in some versions, so only the beginning counts.
    if len(answer) < layout.size:
        raise ImageNotFound(f"image {pool.spec(f'id {image_id}')} has no header: its creation was cut off")
    return layout.unpack_from(answer)
