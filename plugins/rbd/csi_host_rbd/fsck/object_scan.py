"""Listing all objects of a pool: the only way to find what no directory leads to."""

from collections.abc import Callable
from uuid import UUID

from csi_host_rbd.ceph import registries
from csi_host_rbd.ceph.class_calls import HEADER_PREFIX
from csi_host_rbd.ceph.failures import ImageNotFound
from csi_host_rbd.ceph.image_names import read_image_id
from csi_host_rbd.fsck.look import ID_OBJECT_PREFIX, Look
from csi_host_rbd.fsck.names import LOCK_PREFIX, entry_of_object, kind_of_directory
from csi_host_rbd.fsck.object_checks import OBJECT_MAP_PREFIX, image_of_object_map
from csi_host_rbd.fsck.progress import Progress
from csi_host_rbd.reservations import Kind


class ObjectScan:
    """Sorts the objects: notes entries of the journal as not named yet, and suspects what the directory lacks."""

    def __init__(self, look: Look, *, entries: dict[Kind, dict[int, bool]], suspect: Callable[..., None]) -> None:
        self.image_count = 0
        self._look = look
        self._entries = entries
        self._suspect = suspect

    def run(self, progress: Progress) -> None:
        """Read all names; data objects pass by."""
        pool = self._look.pool
        pages = registries.batches(registries.object_names(pool))
        named: list[str] = []
        headers: list[str] = []
        for page in progress.over("objects", pages, len, registries.object_count(pool)):
            for name in page:
                self._sort(name, named, headers)
            if len(named) + len(headers) >= registries.PAGE:
                self._look_up(named, headers)
        self._look_up(named, headers)

    def _sort(self, name: str, named: list[str], headers: list[str]) -> None:
        entry = entry_of_object(name)
        if entry is not None:
            self._entries[entry[0]].setdefault(UUID(entry[1]).int, False)
        elif name.startswith(ID_OBJECT_PREFIX):
            named.append(name.removeprefix(ID_OBJECT_PREFIX))
        elif name.startswith((HEADER_PREFIX, OBJECT_MAP_PREFIX)):
            headers.append(name)
        elif name.startswith(LOCK_PREFIX):
            self._suspect("lock", name)
        else:
            self._note_directory(name)

    def _note_directory(self, name: str) -> None:
        kind = kind_of_directory(name)
        if kind is not None:
            self._look.hints.directories[kind].add(name)

    def _look_up(self, named: list[str], headers: list[str]) -> None:
        """Suspect names and headers that no directory has, and empty the lists."""
        pool = self._look.pool
        self.image_count += len(named)
        listed = registries.ids_of(pool, named)
        for name in named:
            if name not in listed:
                self._suspect_unlisted(name)
        ids = {_image_id(name) for name in headers}
        unknown = ids - registries.names_of(pool, sorted(ids)).keys()
        unknown -= registries.in_trash(pool, sorted(unknown))
        for name in headers:
            if _image_id(name) in unknown:
                what, subject = ("header", _image_id(name)) if name.startswith(HEADER_PREFIX) else ("object map", name)
                self._suspect(what, subject)
        named.clear()
        headers.clear()

    def _suspect_unlisted(self, name: str) -> None:
        self._suspect("objects", name)
        try:
            self._look.hints.named_only_by_object[read_image_id(self._look.pool, name)] = name
        except ImageNotFound:
            return


def _image_id(name: str) -> str:
    if name.startswith(HEADER_PREFIX):
        return name.removeprefix(HEADER_PREFIX)
    return image_of_object_map(name)
