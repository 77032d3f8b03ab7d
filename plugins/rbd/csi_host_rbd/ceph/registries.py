"""The objects of a pool in which librbd keeps what there is: images, the trash, groups, mirrored images.

Each is read in pages; looking many things up in one of them is one operation for up to 512 of them.
"""

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from csi_host_rbd.ceph import omap
from csi_host_rbd.ceph.bindings import rbd
from csi_host_rbd.ceph.calls import call
from csi_host_rbd.ceph.class_calls import ask
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.encoding import Decoder, packed, packed_u64
from csi_host_rbd.ceph.failures import BackendTimeout, ObjectNotFound, translated
from csi_host_rbd.ceph.headers import modified_at, read_time, read_values, values_as_text
from csi_host_rbd.ceph.parents import Parent

T = TypeVar("T")

DIRECTORY = "rbd_directory"
TRASH = "rbd_trash"
# librbd's states of an image in the trash.
_AT_REST, _MOVING = 0, 1
_GROUPS = "rbd_group_directory"
_GROUP_HEADER_PREFIX = "rbd_group_header."
_GROUP_IMAGE_PREFIX = "image_"
_GROUP_SNAPSHOT_PREFIX = "snapshot_"
_MIRRORING = "rbd_mirroring"
_FORMAT_1_CHILDREN = "rbd_children"
PAGE = 512
# No operation times out sooner.
_PROMPT_SECONDS = 0.9
_LISTINGS = 5


@dataclass(frozen=True, kw_only=True)
class ListedImage:
    """An image as the pool's directory has it."""

    name: str
    image_id: str


@dataclass(frozen=True, kw_only=True)
class TrashedImage:
    """An image in the trash; the times are in seconds since 1970, and it is kept until ``kept_until``.

    ``is_moving`` says that its way there was cut off, or goes on: it is neither removed nor restored before that ends.
    """

    image_id: str
    name: str
    deleted_at: float
    kept_until: float
    is_moving: bool


@dataclass(frozen=True, kw_only=True)
class Group:
    """A group of images."""

    name: str
    group_id: str

    @property
    def header(self) -> str:
        """The object that has its members."""
        return _GROUP_HEADER_PREFIX + self.group_id


def images(pool: Pool) -> Iterator[list[ListedImage]]:
    """Yield the images of a pool in pages, in the order of their names. 1 operation a page."""
    pairs = _pages(pool, DIRECTORY, "dir_list", lambda answer: (answer.text(), answer.text()))
    return ([ListedImage(name=name, image_id=image_id) for name, image_id in page] for page in pairs)


def trashed_images(pool: Pool) -> Iterator[list[TrashedImage]]:
    """Yield what is in the trash in pages, in the order of the ids. 1 operation a page."""
    entries = _pages(pool, TRASH, "trash_list", lambda answer: (answer.text(), answer.versioned(_trashed)))
    return ([make(image_id) for image_id, make in page] for page in entries)


def trashed_image(pool: Pool, image_id: str) -> TrashedImage | None:
    """Return the image of this id when it is in the trash. 1 operation."""
    try:
        return ask(pool, TRASH, "trash_get", packed(image_id), lambda answer: answer.versioned(_trashed))(image_id)
    except ObjectNotFound:
        return None


def groups(pool: Pool) -> Iterator[list[Group]]:
    """Yield the groups of a pool in pages, in the order of their names. 1 operation a page."""
    pairs = _pages(pool, _GROUPS, "group_dir_list", lambda answer: (answer.text(), answer.text()))
    return ([Group(name=name, group_id=group_id) for name, group_id in page] for page in pairs)


def find_group(pool: Pool, name: str) -> Group | None:
    """Return the group of this name. 1 operation."""
    found = values_as_text(read_values(pool, _GROUPS, [f"name_{name}"]))
    return next((Group(name=name, group_id=group_id) for group_id in found.values()), None)


def is_group_empty(pool: Pool, group: Group) -> bool:
    """Whether a group has neither an image nor a snapshot. 2 operations."""
    return not any(_has_key(pool, group.header, prefix) for prefix in (_GROUP_IMAGE_PREFIX, _GROUP_SNAPSHOT_PREFIX))


def ids_of(pool: Pool, names: Sequence[str]) -> dict[str, str]:
    """Return the ids that the directory has for these names of images. 1 operation for 512."""
    return _looked_up(pool, DIRECTORY, "name_", names)


def names_of(pool: Pool, image_ids: Sequence[str]) -> dict[str, str]:
    """Return the names that the directory has for these ids of images. 1 operation for 512."""
    return _looked_up(pool, DIRECTORY, "id_", image_ids)


def in_trash(pool: Pool, image_ids: Sequence[str]) -> set[str]:
    """Return which of these ids are in the trash. 1 operation for 512."""
    return set(_looked_up(pool, TRASH, "id_", image_ids))


def is_mirrored(pool: Pool, image_id: str) -> bool:
    """Whether an image is mirrored, as primary or as copy, or is about to be. 1 operation."""
    return bool(_looked_up(pool, _MIRRORING, "image_", [image_id]))


def has_format_1_child(pool: Pool, parent: Parent, image_id: str) -> bool:
    """Whether an image is a registered child of the kind whose parent must be protected. 1 operation."""
    question = packed_u64(parent.pool_id) + packed(parent.image_id) + packed_u64(parent.snapshot_id)
    try:
        children = ask(pool, _FORMAT_1_CHILDREN, "get_children", question, lambda answer: _texts(answer, answer.u32()))
    except ObjectNotFound:
        return False
    return image_id in children


def namespaces(pool: Pool) -> list[str]:
    """Return the RADOS namespaces of a pool that images may be in, but for the default one."""
    return [
        str(name) for name in call(pool, "", "listing the namespaces of", lambda: rbd.RBD().namespace_list(pool.ioctx))
    ]


def object_names(pool: Pool) -> Iterator[str]:
    """Yield the names of all objects of the RADOS namespace, those with data as well: slow in a big pool.

    Names that are not UTF-8 are left out: nothing of Ceph's or CSI's is called so. The binding takes every error for
    the end, and so a listing that ended as late as an operation that times out is begun again: names come twice then.
    Raises BackendTimeout, and what else talking to the pool fails with.
    """
    for _ in range(_LISTINGS):
        last_seconds = yield from _listed(pool)
        modified_at(pool, DIRECTORY)
        if last_seconds < _PROMPT_SECONDS:
            return
    raise BackendTimeout(f"listing the objects of pool {pool.name}: Ceph did not answer in time, {_LISTINGS} times")


def _listed(pool: Pool) -> Generator[str, None, float]:
    """Yield names and return how many seconds the last step took."""
    objects = pool.ioctx.list_objects()
    while True:
        began = time.monotonic()
        with translated(f"listing the objects of pool {pool.name}"):
            try:
                name = next(objects).key
            except StopIteration:
                return time.monotonic() - began
            except UnicodeDecodeError:
                continue
        yield name


def object_count(pool: Pool) -> int:
    """Return how many objects the pool has in all namespaces, from the cluster's statistics, seconds old."""
    with translated(f"asking for the statistics of pool {pool.name}"):
        return int(pool.ioctx.get_stats()["num_objects"])


def batches(items: Iterable[T], size: int = PAGE) -> Iterator[list[T]]:
    """Yield the items in lists of ``size``."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _pages(
    pool: Pool, name: str, method: str, read: Callable[[Decoder], tuple[str, T]]
) -> Iterator[list[tuple[str, T]]]:
    last = ""
    while True:
        question = packed(last) + packed_u64(PAGE)
        try:
            page = ask(pool, name, method, question, lambda answer: [read(answer) for _ in range(answer.u32())])
        except ObjectNotFound:
            return
        if page:
            yield page
            last = page[-1][0]
        if len(page) < PAGE:
            return


def _looked_up(pool: Pool, name: str, prefix: str, wanted: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for batch in batches(wanted):
        found |= values_as_text(read_values(pool, name, [prefix + one for one in batch]))
    return {key.removeprefix(prefix): value for key, value in found.items()}


def _has_key(pool: Pool, name: str, prefix: str) -> bool:
    try:
        return bool(omap.read_page(pool, name, prefix=prefix, entries=1))
    except ObjectNotFound:
        return False


def _trashed(answer: Decoder) -> Callable[[str], TrashedImage]:
    """Read an entry, which does not have the image's id, and return what makes the image of it."""
    answer.u8()  # who put it there
    name, deleted_at, kept_until = answer.text(), read_time(answer), read_time(answer)
    state = _AT_REST if answer.is_at_end else answer.u8()
    return lambda image_id: TrashedImage(
        image_id=image_id, name=name, deleted_at=deleted_at, kept_until=kept_until, is_moving=state == _MOVING
    )


def _texts(answer: Decoder, count: int) -> list[str]:
    return [answer.text() for _ in range(count)]
