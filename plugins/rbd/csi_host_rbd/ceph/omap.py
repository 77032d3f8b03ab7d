"""Objects with keys and values, as the journal keeps them; every function is one operation.

Values are the bytes of the text, without a terminating NUL. The binding takes keys as C strings, and counts the
characters of a value to compare with instead of its bytes: a key with a NUL and a compared value that is not ASCII
would be cut short without an error, and are refused here.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from csi_host.errors import InvalidArgument
from csi_host_rbd.ceph.bindings import rados
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.failures import ObjectNotFound, translated

_PAGE_ENTRIES = 512
# A key that no object has: comparing it is the binding's only way to make a write fail on a missing object.
_NO_KEY = "csi-host.none"


def read_keys(pool: Pool, name: str, keys: Sequence[str]) -> dict[str, str]:
    """Return those of ``keys`` that the object has; raises ObjectNotFound."""
    with _reading("reading object", f"{pool.name}/{name}") as operation:
        values, _ = pool.ioctx.get_omap_vals_by_keys(operation, _checked(keys))
        pool.ioctx.operate_read_op(operation, name)
        return _texts(values)


def read_page(
    pool: Pool, name: str, *, start_after: str = "", prefix: str = "", entries: int = _PAGE_ENTRIES
) -> dict[str, str]:
    """Return up to ``entries`` keys after ``start_after`` that begin with ``prefix``, in order; or ObjectNotFound."""
    with _reading("listing object", f"{pool.name}/{name}") as operation:
        values, _ = pool.ioctx.get_omap_vals(operation, start_after, prefix, entries)
        pool.ioctx.operate_read_op(operation, name)
        return _texts(values)


def create_object(pool: Pool, name: str, values: Mapping[str, str]) -> None:
    """Make an object with all its keys; raises ObjectExists when there is one of that name."""
    with _writing(pool, name, "creating object") as operation:
        operation.new(rados.LIBRADOS_CREATE_EXCLUSIVE)
        _set(pool, operation, values)


def set_keys(pool: Pool, name: str, values: Mapping[str, str]) -> None:
    """Write keys; the object appears if it must."""
    with _writing(pool, name, "writing object") as operation:
        _set(pool, operation, values)


def update_keys(pool: Pool, name: str, values: Mapping[str, str]) -> None:
    """Write keys of an object that exists; raises ObjectNotFound."""
    with _writing(pool, name, "writing object") as operation:
        expect_object(operation)
        _set(pool, operation, values)


def expect_object(operation: Any) -> None:
    """Make a write operation of librados fail as on a missing object when there is none, instead of making it."""
    _compare(operation, _NO_KEY, "")


def claim_key(pool: Pool, name: str, key: str, value: str) -> None:
    """Set a key that is not there yet; raises KeyMismatch when it is. The object appears if it must."""
    with _writing(pool, name, f"claiming key {key} of object") as operation:
        # A missing key compares as an empty value; a missing object would be an error, hence the creation.
        operation.new(rados.LIBRADOS_CREATE_IDEMPOTENT)
        _compare(operation, key, "")
        _set(pool, operation, {key: value})


def remove_key_if(pool: Pool, name: str, key: str, value: str) -> None:
    """Remove a key that has this value; raises KeyMismatch when it has another or is gone, or ObjectNotFound."""
    with _writing(pool, name, f"removing key {key} of object") as operation:
        _compare(operation, key, value)
        pool.ioctx.remove_omap_keys(operation, _checked([key]))


def remove_object(pool: Pool, name: str) -> None:
    """Remove an object; fine when it is gone."""
    step = f"removing object {pool.name}/{name}"
    try:
        with pool.writes.step(step), translated(step):
            pool.ioctx.remove_object(name)
    except ObjectNotFound:
        return


@contextmanager
def _reading(step: str, target: str) -> Iterator[Any]:
    with translated(f"{step} {target}"), rados.ReadOpCtx() as operation:
        yield operation


@contextmanager
def _writing(pool: Pool, name: str, step: str) -> Iterator[Any]:
    what = f"{step} {pool.name}/{name}"
    with translated(what), rados.WriteOpCtx() as operation:
        yield operation
        with pool.writes.step(what):
            # The binding sends its default as it is, and the object would be from 1970.
            pool.ioctx.operate_write_op(operation, name, int(time.time()))


def _compare(operation: Any, key: str, value: str) -> None:
    if not value.isascii() or "\0" in value:
        raise InvalidArgument(f"a value to compare with must be ASCII text, got {value!r}")
    operation.omap_cmp(*_checked([key]), value, rados.LIBRADOS_CMPXATTR_OP_EQ)


def _set(pool: Pool, operation: Any, values: Mapping[str, str]) -> None:
    pool.ioctx.set_omap(operation, _checked(values), tuple(value.encode() for value in values.values()))


def _checked(keys: Iterable[str]) -> tuple[str, ...]:
    for key in keys:
        if "\0" in key:
            raise InvalidArgument(f"a name must not hold a NUL character, got {key!r}")
    return tuple(keys)


def _texts(values: Any) -> dict[str, str]:
    # What another program wrote may be anything: it must not stop the reading of the rest. An empty value is None.
    return {key: (value or b"").decode(errors="replace") for key, value in values}
