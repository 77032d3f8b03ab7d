"""What is read of a pool for fsck: entries of the journal, images by their objects, the manager's tasks."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Lock

from csi_host.locks import SnapshotLocks, VolumeLocks
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.headers import Header
from csi_host_rbd.fsck.names import KINDS
from csi_host_rbd.reservations import SNAPSHOTS, Kind


def noun_of(kind: Kind) -> str:
    """Return what the locks call things of a kind."""
    return SnapshotLocks.noun if kind is SNAPSHOTS else VolumeLocks.noun


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An object of the journal with its keys; ``is_split`` when some of them are in the pool of the directory."""

    kind: Kind
    uuid: str
    pool: Pool
    values: Mapping[str, str]
    is_split: bool = False

    @property
    def object_name(self) -> str:
        """The object's name."""
        return self.kind.prefix + self.uuid

    @property
    def name(self) -> str:
        """The CO's name, "" when the object has lost it."""
        return self.values.get(self.kind.name_key, "")

    @property
    def image_name(self) -> str:
        """The image's name, or the group's."""
        return self.values.get(self.kind.image_key) or self.kind.image_prefix + self.uuid

    @property
    def image_id(self) -> str:
        """The image's id, "" when it is not known yet."""
        return self.values.get("csi.imageid", "")

    @property
    def source(self) -> str:
        """The image that a snapshot was taken of."""
        return self.values.get("csi.source", "")

    @property
    def journal_pool_id(self) -> int | None:
        """The id of the pool with the directory, where it is another one."""
        text = self.values.get("csi.journalpool", "")
        try:
            return int(text, 16) if text else None
        except ValueError:
            return None


@dataclass(frozen=True, kw_only=True)
class ImageState:
    """The objects that make up an image; ``id_object`` is None when the object that has its id is missing."""

    name: str
    id_object: str | None
    listed_id: str
    header: Header | None

    @property
    def image_id(self) -> str:
        """The id, from where there is one."""
        return self.id_object or self.listed_id


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task of the manager on an image; ``retries`` is how often it has failed."""

    task_id: str
    image_id: str
    image_name: str
    action: str
    retries: int
    reason: str


class TaskList:
    """The manager's tasks as it told them a moment ago: one question serves the many images that are looked at."""

    _FRESH_SECONDS = 2.0

    def __init__(self) -> None:
        self._guard = Lock()
        self._tasks: list[Task] = []
        self._read_at = -math.inf

    def forget(self) -> None:
        """Have the next question asked for real."""
        with self._guard:
            self._read_at = -math.inf

    def read(self, ask: Callable[[], list[Task]]) -> list[Task]:
        """Return the tasks, by ``ask`` when the last answer is too old."""
        with self._guard:
            if time.monotonic() - self._read_at >= self._FRESH_SECONDS:
                self._tasks, self._read_at = ask(), time.monotonic()
            return self._tasks


@dataclass
class Hints:
    """What the scan has seen that a look at one thing cannot; nothing rests on it alone."""

    directories: dict[Kind, set[str]] = field(default_factory=lambda: {kind: set() for kind in KINDS})
    images_by_uuid: dict[str, str] = field(default_factory=dict)
    trashed_by_name: dict[str, str] = field(default_factory=dict)
    taken_for: set[str] = field(default_factory=set)
    named_only_by_object: dict[str, str] = field(default_factory=dict)
