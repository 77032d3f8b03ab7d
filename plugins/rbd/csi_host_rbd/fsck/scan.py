"""Reading a whole pool in pages, to learn what has to be looked at closely.

What is kept in memory is a page, about 100 bytes for every entry of the journal (its uuid, and whether a name leads to
it), and what did not fit. Everything else is looked up in the pool, up to 512 things in one operation; an entry of the
journal costs one operation of its own, an image two, a clone four, and each snapshot one.

The order: objects before names, entries before images, images before the trash. So what a controller makes meanwhile
has its later half when that is read, or is not seen at all. What is deleted meanwhile does not fit, and no longer
exists when it is looked at closely.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar
from uuid import UUID

from csi_host_rbd.ceph import omap, registries
from csi_host_rbd.ceph.failures import ImageNotFound, ObjectNotFound
from csi_host_rbd.ceph.headers import Header, user_snapshots
from csi_host_rbd.ceph.image_names import read_image_id
from csi_host_rbd.ceph.registries import ListedImage, TrashedImage
from csi_host_rbd.fsck.children import Children
from csi_host_rbd.fsck.look import Look
from csi_host_rbd.fsck.names import (
    KINDS,
    is_csi_like,
    split_value,
    uuid_at_end,
    volume_of_temporary,
)
from csi_host_rbd.fsck.object_scan import ObjectScan
from csi_host_rbd.fsck.progress import Progress
from csi_host_rbd.fsck.records import Entry
from csi_host_rbd.fsck.suspicions import Suspicion
from csi_host_rbd.reservations import GROUPS, SNAPSHOTS, VOLUMES, Kind

T = TypeVar("T")
R = TypeVar("R")


class Scan:
    """One reading of a pool; ``workers`` is how many operations are under way at once."""

    def __init__(self, look: Look, *, workers: ThreadPoolExecutor, progress: Progress, lists_objects: bool) -> None:
        self._look = look
        self._workers = workers
        self._progress = progress
        self._lists_objects = lists_objects
        # By uuid, as numbers to save memory: whether a name leads to the entry.
        self._entries: dict[Kind, dict[int, bool]] = {kind: {} for kind in KINDS}
        self._images = 0
        self._suspicions: dict[Suspicion, None] = {}

    def run(self) -> list[Suspicion]:
        """Read it all."""
        if self._lists_objects:
            self._read_objects()
        for kind in KINDS:
            self._read_names(kind)
        self._suspect_unnamed()
        self._read_images()
        self._read_trash()
        self._read_tasks()
        self._read_groups()
        return list(self._suspicions)

    def _suspect(self, what: str, *subject: str) -> None:
        self._suspicions[Suspicion(what, subject)] = None

    def _each(self, function: Callable[[T], R], items: Sequence[T]) -> Iterable[R]:
        return self._workers.map(function, items)

    def _read_objects(self) -> None:
        objects = ObjectScan(self._look, entries=self._entries, suspect=self._suspect)
        objects.run(self._progress)
        self._images = objects.image_count

    # Names, and the entries that they lead to.

    def _read_names(self, kind: Kind) -> None:
        ours = self._look.directory(kind)
        total = len(self._entries[kind]) if self._lists_objects else None
        for directory in sorted(self._look.directories(kind)):
            pages = self._progress.over(f"names in {directory}", self._directory(directory), len, total)
            for page in pages:
                self._note_names(kind, page)
                if directory == ours:
                    self._check_names(kind, page)

    def _directory(self, directory: str) -> Iterator[dict[str, str]]:
        last = ""
        while True:
            try:
                page = omap.read_page(self._look.pool, directory, start_after=last)
            except ObjectNotFound:
                return
            if not page:
                return
            yield page
            last = max(page)

    def _note_names(self, kind: Kind, page: dict[str, str]) -> None:
        for value in page.values():
            _, uuid = split_value(value)
            if uuid:
                self._entries[kind][UUID(uuid).int] = True

    def _check_names(self, kind: Kind, page: dict[str, str]) -> None:
        names = {key.removeprefix(kind.prefix): value for key, value in page.items() if key.startswith(kind.prefix)}
        found = dict(zip(names, self._each(lambda value: self._entry(kind, value), list(names.values())), strict=True))
        here = [entry.image_name for entry in found.values() if entry is not None]
        ids = registries.ids_of(self._look.pool, here) if kind is not GROUPS else {}
        for name, entry in found.items():
            fits = entry is not None and entry.name == name and kind is not GROUPS
            if not (fits and entry is not None and entry.image_id and ids.get(entry.image_name) == entry.image_id):
                self._suspect("name", kind.directory, name)
            if entry is None or not entry.name:
                self._look.hints.images_by_uuid.setdefault(split_value(names[name])[1], "")

    def _entry(self, kind: Kind, value: str) -> Entry | None:
        pool_id, uuid = split_value(value)
        return self._look.entry(kind, uuid) if uuid and not pool_id else None

    def _suspect_unnamed(self) -> None:
        for kind, entries in self._entries.items():
            for number, is_named in entries.items():
                if not is_named:
                    uuid = str(UUID(int=number))
                    self._suspect("entry", kind.directory, uuid)
                    self._look.hints.images_by_uuid.setdefault(uuid, "")

    # Images and what hangs on them.

    def _read_images(self) -> None:
        pool = self._look.pool
        total = self._images if self._lists_objects else None
        children = Children(self._look)
        for page in self._progress.over("images", registries.images(pool), len, total):
            temporary = {volume for one in page if (volume := volume_of_temporary(one.name))}
            there = registries.ids_of(pool, sorted(temporary))
            list(self._each(partial(self._check_image, there=there, children=children), page))

    def _check_image(self, image: ListedImage, *, there: dict[str, str], children: Children) -> None:
        name, uuid = image.name, uuid_at_end(image.name)
        volume = volume_of_temporary(name)
        if not uuid and not volume:
            self._check_snapshots(name, self._look.header(image.image_id))
            return
        if uuid in self._look.hints.images_by_uuid:
            self._look.hints.images_by_uuid[uuid] = name
        if volume and volume not in there:
            self._suspect("temporary", name)
        if uuid and not self._is_known(uuid):
            self._suspect("image", name)
        header = self._header_by_name(image)
        if header is None:
            self._suspect("objects", name)
        elif header.has_parent and not children.has(image.image_id):
            self._suspect("clone", name, image.image_id)
        self._check_snapshots(name, header)

    def _header_by_name(self, image: ListedImage) -> Header | None:
        try:
            if read_image_id(self._look.pool, image.name) != image.image_id:
                return None
        except ImageNotFound:
            return None
        return self._look.header(image.image_id)

    def _is_known(self, uuid: str) -> bool:
        number = UUID(uuid).int
        return number in self._entries[VOLUMES] or number in self._entries[SNAPSHOTS]

    def _check_snapshots(self, name: str, header: Header | None) -> None:
        if header is None:
            return
        snapshots = user_snapshots(self._look.pool, header) if header.snapshot_ids else []
        left = [one.name for one in snapshots if one.name != name and is_csi_like(one.name)]
        self._look.hints.taken_for.update(left)
        if left:
            self._suspect("snapshots", name, header.image_id)
        uuid = uuid_at_end(name)
        needs_own = uuid and UUID(uuid).int in self._entries[SNAPSHOTS]
        if needs_own and not any(one.name == name for one in snapshots):
            self._suspect_snapshot(uuid)

    def _suspect_snapshot(self, uuid: str) -> None:
        entry = self._look.entry(SNAPSHOTS, uuid)
        if entry is not None and entry.name:
            self._suspect("name", SNAPSHOTS.directory, entry.name)

    # What is on its way out, and the rest.

    def _read_trash(self) -> None:
        tasks = {task.image_id for task in self._look.tasks()}
        for page in self._progress.over("trash", registries.trashed_images(self._look.pool), len, None):
            ours = [one for one in page if is_csi_like(one.name)]
            list(self._each(lambda one: self._check_trashed(one, tasks), ours))

    def _check_trashed(self, image: TrashedImage, tasks: set[str]) -> None:
        self._look.hints.trashed_by_name[image.name] = image.image_id
        if image.image_id not in tasks or image.is_moving:
            self._suspect("trashed", image.image_id)
        self._check_snapshots(image.name, self._look.header(image.image_id))

    def _read_tasks(self) -> None:
        for task in self._look.tasks():
            if task.retries:
                self._suspect("task", task.task_id)

    def _read_groups(self) -> None:
        for page in registries.groups(self._look.pool):
            for group in page:
                uuid = uuid_at_end(group.name)
                if uuid and UUID(uuid).int not in self._entries[GROUPS]:
                    self._suspect("group", group.name)
