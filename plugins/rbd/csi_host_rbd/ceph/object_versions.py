"""Which of an image's objects differ between two snapshots, by what RADOS knows of every object.

It needs no feature of the image. RADOS gives an object a new version with every change, and what a snapshot sees of it
keeps the version that it had then: an object that two snapshots see with one version was not written in between. An
object that was removed and made anew gets a higher version than any that its placement group has seen.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from csi_host_rbd.ceph.bindings import rados
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.failures import ObjectNotFound, error_of, translated

# Questions that are under way at the same time.
_AT_ONCE = 64


class ObjectVersions:
    """The objects of one image at a base and at a target snapshot."""

    def __init__(self, prefix: str, *, base: Any, target: Any) -> None:
        self._prefix = prefix
        self._base = base
        self._target = target

    def changed(self, objects: range) -> bytes:
        """Return a byte for each object, 1 for those that differ. 2 operations an object, 4 for one that both have."""
        names = [f"{self._prefix}.{number:016x}" for number in objects]
        before, after = _exist(self._base, names), _exist(self._target, names)
        return bytes(
            is_there != was_there or (is_there and _version(self._base, name) != _version(self._target, name))
            for name, was_there, is_there in zip(names, before, after, strict=True)
        )


@contextmanager
def open_versions(data_pool: Pool, prefix: str, *, base_id: int, target_id: int) -> Iterator[ObjectVersions]:
    """Yield the versions of the objects whose names begin with ``prefix``; used by one thread only."""
    with _at_snapshot(data_pool, base_id) as base, _at_snapshot(data_pool, target_id) as target:
        yield ObjectVersions(prefix, base=base, target=target)


@contextmanager
def _at_snapshot(pool: Pool, snapshot_id: int) -> Iterator[Any]:
    # What a handle reads at, and the version of what it read last, belong to the handle: it is not shared.
    with translated(f"opening pool {pool.name} at snapshot {snapshot_id}"):
        ioctx = pool.ioctx.dup()
    try:
        ioctx.set_namespace(pool.namespace)
        ioctx.set_read(snapshot_id)
        yield ioctx
    finally:
        ioctx.close()


def _exist(ioctx: Any, names: Sequence[str]) -> list[bool]:
    found: list[bool] = []
    for start in range(0, len(names), _AT_ONCE):
        part = names[start : start + _AT_ONCE]
        with translated(f"looking for objects {part[0]} to {part[-1]}"):
            asked = [ioctx.aio_stat(name, _ignore) for name in part]
        for name, completion in zip(part, asked, strict=True):
            # Each ends within the connection's timeout of an operation.
            completion.wait_for_complete()
            found.append(_is_there(completion.get_return_value(), name))
    return found


def _ignore(_completion: object, _size: object, _time: object) -> None:
    """Do nothing: the answer is read from the completion."""


def _is_there(code: int, name: str) -> bool:
    if code >= 0:
        return True
    error = error_of(rados.OSError(name, errno=-code), f"looking for object {name}")
    if isinstance(error, ObjectNotFound):
        return False
    raise error


def _version(ioctx: Any, name: str) -> int:
    """Return an object's version, 0 when it has gone since."""
    try:
        with translated(f"reading the version of object {name}"):
            ioctx.stat(name)
            return int(ioctx.get_last_version())
    except ObjectNotFound:
        return 0
