"""Which of an image's objects differ between two snapshots, by what RADOS knows of every object.

It needs no feature of the image. RADOS gives an object a new version with every change, and what a snapshot sees of it
keeps the version that it had then: an object that two snapshots see with one version was not written in between. An
object that was removed and made anew gets a higher version than any that its placement group has seen.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from csi_host.server.pools import DaemonPool
from csi_host_rbd.ceph.bindings import rados
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.failures import ObjectNotFound, error_of, translated

# Questions that are under way at the same time: those that need not wait for an answer, and those that do.
_AT_ONCE = 64
_THREADS = 4


class ObjectVersions:
    """The objects of one image at a base and at a target snapshot, each handle's for one thread."""

    def __init__(self, prefix: str, *, handles: Sequence["_Handles"], threads: Executor) -> None:
        self._prefix = prefix
        self._handles = handles
        self._threads = threads

    def changed(self, objects: range) -> bytes:
        """Return a byte for each object, 1 for those that differ. 2 operations an object, 4 for one that both have."""
        names = [f"{self._prefix}.{number:016x}" for number in objects]
        before, after = _exist(self._handles[0].base, names), _exist(self._handles[0].target, names)
        in_both = [
            name for name, was_there, is_there in zip(names, before, after, strict=True) if was_there and is_there
        ]
        rewritten = self._rewritten(in_both)
        return bytes(
            was_there != is_there or name in rewritten
            for name, was_there, is_there in zip(names, before, after, strict=True)
        )

    def _rewritten(self, names: Sequence[str]) -> set[str]:
        """Return the objects with another version; the binding tells it after synchronous reads only."""
        count = len(self._handles)
        parts = [
            self._threads.submit(handles.rewritten, names[number::count])
            for number, handles in enumerate(self._handles)
        ]
        # All have ended before the first failure is told: nobody else uses a handle then.
        wait(parts)
        return {name for part in parts for name in part.result()}


@dataclass(frozen=True, kw_only=True)
class _Handles:
    """A pool at two snapshots."""

    base: Any
    target: Any

    def rewritten(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if _version(self.base, name) != _version(self.target, name)]


@contextmanager
def open_versions(data_pool: Pool, prefix: str, *, base_id: int, target_id: int) -> Iterator[ObjectVersions]:
    """Yield the versions of the objects whose names begin with ``prefix``."""
    with ExitStack() as stack:
        handles = [
            _Handles(
                base=stack.enter_context(_at_snapshot(data_pool, base_id)),
                target=stack.enter_context(_at_snapshot(data_pool, target_id)),
            )
            for _ in range(_THREADS)
        ]
        threads = DaemonPool(_THREADS, "versions")
        stack.callback(threads.shutdown)
        yield ObjectVersions(prefix, handles=handles, threads=threads)


@contextmanager
def _at_snapshot(pool: Pool, snapshot_id: int) -> Iterator[Any]:
    # What a handle reads at, and the version of what it read last, belong to the handle.
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
