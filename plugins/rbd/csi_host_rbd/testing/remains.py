"""Everything that a RADOS namespace of a pool holds, to compare what is left with what was there."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from csi_host.process import ProcessError
from csi_host_rbd.ceph import omap
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.failures import ObjectNotFound
from csi_host_rbd.testing.pools import PoolView

_PAGE_ENTRIES = 1000
_PAUSE_SECONDS = 0.5
# They appear with the first of what they list, and stay: empty ones are as good as none.
_REGISTRIES = frozenset({"rbd_directory", "rbd_trash", "rbd_task", "rbd_children", "rbd_group_directory"})
# What librbd counts and notes in a header as time goes by, and in the directory that it may be written to.
_PASSING = ("snap_seq", "access_timestamp", "modify_timestamp", "state")


@dataclass(frozen=True, kw_only=True)
class Remains:
    """The objects with their keys and values, and the tasks of the manager.

    Images, their snapshots of every kind, the clones that hang on these, the trash and the journal are all in keys.
    """

    objects: Mapping[str, Mapping[str, str]]
    tasks: frozenset[str]

    def beyond(self, before: "Remains") -> list[str]:
        """Return what is here and was not before, and the other way round; a line for each."""
        return [*_extra("+", self, before), *_extra("-", before, self), *_changed(self, before)]


def remains_of(pool: PoolView) -> Remains:
    """Return what there is now."""
    with pool.connected() as connection_pool:
        keys = {name: _keys(connection_pool, name) for name in pool.objects()}
    objects = {name: found for name, found in keys.items() if found or (found is not None and not _is_registry(name))}
    return Remains(objects=objects, tasks=_tasks(pool))


def wait_until_clean(pool: PoolView, before: Remains, *, seconds: float = 45.0) -> list[str]:
    """Wait until the manager has emptied the trash, and return what is left beyond ``before``.

    A removal that failed, as a clone was still there, is tried again at once: the manager waits half a minute more
    after each failure.
    """
    deadline = time.monotonic() + seconds
    while True:
        _hasten_the_manager(pool)
        left = remains_of(pool).beyond(before)
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(_PAUSE_SECONDS)


def _hasten_the_manager(pool: PoolView) -> None:
    for task in json.loads(pool.cluster.ceph("rbd", "task", "list")):
        refs = task.get("refs", {})
        if task.get("retry_attempts") and _is_of(task, pool) and refs.get("action") == "trash remove":
            place = "/".join(part for part in (pool.name, pool.namespace) if part)
            # It may just have been done after all.
            with suppress(ProcessError):
                pool.cluster.ceph("rbd", "task", "cancel", task["id"])
                pool.cluster.ceph("rbd", "task", "add", "trash", "remove", f"{place}/{refs['image_id']}")


def _is_registry(name: str) -> bool:
    return name in _REGISTRIES or name.startswith(("csi.volumes.", "csi.snaps.", "csi.groups."))


def _tasks(pool: PoolView) -> frozenset[str]:
    tasks = json.loads(pool.cluster.ceph("rbd", "task", "list"))
    return frozenset(str(task["message"]) for task in tasks if _is_of(task, pool))


def _is_of(task: Mapping[str, Mapping[str, str]], pool: PoolView) -> bool:
    refs = task.get("refs", {})
    return (refs.get("pool_name"), refs.get("pool_namespace", "")) == (pool.name, pool.namespace)


def _keys(pool: Pool, name: str) -> dict[str, str] | None:
    """Return an object's keys and values; None when it has just gone."""
    keys: dict[str, str] = {}
    start_after = ""
    try:
        while True:
            page = omap.read_page(pool, name, start_after=start_after, entries=_PAGE_ENTRIES)
            keys |= page
            if len(page) < _PAGE_ENTRIES:
                return {key: value for key, value in keys.items() if key not in _PASSING}
            start_after = max(page)
    except ObjectNotFound:
        return None


def _extra(sign: str, more: Remains, less: Remains) -> Iterator[str]:
    for name, keys in more.objects.items():
        if name not in less.objects:
            yield f"{sign} object {name} with {len(keys)} keys {sorted(keys)[:3]}"
        else:
            yield from (f"{sign} key {key!r} of {name}" for key in keys.keys() - less.objects[name].keys())
    yield from (f"{sign} task {task}" for task in more.tasks - less.tasks)


def _changed(now: Remains, before: Remains) -> Iterator[str]:
    for name in now.objects.keys() & before.objects.keys():
        ours, theirs = now.objects[name], before.objects[name]
        yield from (f"~ key {key!r} of {name}" for key in ours.keys() & theirs.keys() if ours[key] != theirs[key])
