"""Writes that mend what was cut off: each is one operation, and fails when what it rests on has changed."""

import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from csi_host.errors import InvalidArgument
from csi_host_rbd.ceph.bindings import rados
from csi_host_rbd.ceph.class_calls import HEADER_PREFIX
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.encoding import packed, packed_struct, packed_u64
from csi_host_rbd.ceph.failures import ObjectExists, translated
from csi_host_rbd.ceph.parents import Parent
from csi_host_rbd.ceph.registries import DIRECTORY, TRASH

_ID_OBJECT_PREFIX = "rbd_id."
# The bit that tells librbd to take the image off its parent's list when it is flattened or removed.
_CLONE_CHILD = 1 << 1
_VERSION_2 = struct.Struct("<BBI")


def remove_object_if(pool: Pool, name: str, expected: Mapping[str, str]) -> None:
    """Remove an object whose keys have these values ("" for none); raises KeyMismatch, ObjectNotFound."""
    with _writing(pool, name, "removing object") as operation:
        _compare(operation, expected)
        operation.remove()


def change_keys_if(pool: Pool, name: str, expected: Mapping[str, str], values: Mapping[str, str]) -> None:
    """Write keys of an object whose keys have these values ("" for none); raises KeyMismatch, ObjectNotFound."""
    with _writing(pool, name, "writing object") as operation:
        _compare(operation, expected)
        pool.ioctx.set_omap(operation, tuple(values), tuple(value.encode() for value in values.values()))


def write_id_object(pool: Pool, name: str, image_id: str) -> None:
    """Make the object that leads from an image's name to its id; raises ObjectExists."""
    with _writing(pool, _ID_OBJECT_PREFIX + name, "making object") as operation:
        operation.new(rados.LIBRADOS_CREATE_EXCLUSIVE)
        operation.write_full(packed(image_id))


def list_image(pool: Pool, name: str, image_id: str) -> None:
    """Add an image to the directory; raises ObjectExists when the name or the id is there with another partner."""
    _execute(pool, DIRECTORY, "dir_add_image", packed(name) + packed(image_id))


def attach_child(parent_pool: Pool, parent: Parent, pool: Pool, image_id: str) -> None:
    """Tell a parent of its clone, as librbd does last when it makes one. 2 operations; fine to repeat."""
    mask = packed_u64(_CLONE_CHILD)
    _execute(pool, HEADER_PREFIX + image_id, "op_features_set", mask + mask)
    child = packed_u64(pool.pool_id) + packed(image_id) + packed(pool.namespace)
    # The second version of the structure: the first has no RADOS namespace.
    question = packed_u64(parent.snapshot_id) + _VERSION_2.pack(2, 1, len(child)) + child
    with suppress(ObjectExists):
        _execute(parent_pool, HEADER_PREFIX + parent.image_id, "child_attach", question)


def put_into_trash(pool: Pool, image_id: str, name: str, *, kept_seconds: int) -> None:
    """List an image that no directory has in the trash, so that it can be looked at, restored or removed."""
    now = int(time.time())
    times = b"".join(packed_u64(second) for second in (now, now + kept_seconds))
    _execute(pool, TRASH, "trash_add", packed(image_id) + packed_struct(b"\0" + packed(name) + times))


def _execute(pool: Pool, name: str, method: str, question: bytes) -> None:
    with _writing(pool, name, f"{method} of object") as operation:
        operation.execute("rbd", method, question)


@contextmanager
def _writing(pool: Pool, name: str, step: str) -> Iterator[Any]:
    what = f"{step} {pool.name}/{name}"
    with translated(what), rados.WriteOpCtx() as operation:
        yield operation
        with pool.writes.step(what):
            pool.ioctx.operate_write_op(operation, name, int(time.time()))


def _compare(operation: Any, expected: Mapping[str, str]) -> None:
    for key, value in expected.items():
        # The binding counts characters instead of bytes: a longer value would be cut short without an error.
        if not value.isascii():
            raise InvalidArgument(f"a value to compare with must be ASCII text, got {value!r}")
        operation.omap_cmp(key, value, rados.LIBRADOS_CMPXATTR_OP_EQ)
