"""Reading a pool afresh, one thing at a time: what every finding rests on."""

import json
from dataclasses import dataclass, field

from csi_host.errors import PermissionDenied
from csi_host_rbd.ceph import headers, omap, registries
from csi_host_rbd.ceph.cluster import Connection, Pool
from csi_host_rbd.ceph.failures import ArgumentRefused, ImageNotFound, ObjectNotFound, PoolNotFound
from csi_host_rbd.ceph.headers import Header
from csi_host_rbd.ceph.image_names import read_image_id
from csi_host_rbd.fsck.findings import LockKeys
from csi_host_rbd.fsck.records import Entry, Hints, ImageState, Task, TaskList, noun_of
from csi_host_rbd.reservations import SNAPSHOTS, VOLUMES, Kind
from csi_host_rbd.volume_id import InvalidVolumeId, VolumeId

ID_OBJECT_PREFIX = "rbd_id."
_ENTRY_KEYS = 512


@dataclass(frozen=True, kw_only=True)
class Look:
    """One RADOS namespace of a pool; ``cluster_id`` is "" where the configuration does not say.

    ``manager_timeout`` is in seconds; ``journal_pools`` are other pools with the journal of volumes in this one.
    """

    pool: Pool
    connection: Connection
    instance_id: str
    cluster_id: str
    manager_timeout: float
    journal_pools: tuple[Pool, ...] = ()
    hints: Hints = field(default_factory=Hints)
    task_list: TaskList = field(default_factory=TaskList)

    def directory(self, kind: Kind) -> str:
        """Return the name of our instance's directory."""
        return kind.directory + self.instance_id

    def directories(self, kind: Kind) -> set[str]:
        """Return the directories of all instances that are known of."""
        return self.hints.directories[kind] | {self.directory(kind)}

    def value(self, directory: str, kind: Kind, name: str, pool: Pool | None = None) -> str | None:
        """Return what a directory has under a name."""
        key = kind.prefix + name
        try:
            return omap.read_keys(pool or self.pool, directory, [key]).get(key)
        except ObjectNotFound:
            return None

    def entry(self, kind: Kind, uuid: str, pool: Pool | None = None) -> Entry | None:
        """Return an object of the journal; None when it is missing."""
        place = pool or self.pool
        try:
            values = omap.read_page(place, kind.prefix + uuid, entries=_ENTRY_KEYS)
        except ObjectNotFound:
            return None
        return Entry(kind=kind, uuid=uuid, pool=place, values=values)

    def entry_of_value(self, kind: Kind, pool_id: str, uuid: str) -> Entry | None:
        """Return what a value of a directory leads to; raises PoolNotFound."""
        if not pool_id:
            return self.entry(kind, uuid)
        found = self.entry(kind, uuid, self.pool_at(int(pool_id, 16), self.pool.namespace))
        if found is not None and not found.name:
            # ceph-csi v3.0 to v3.10 wrote the keys where the directory is.
            here = self.entry(kind, uuid)
            values = {**(here.values if here else {}), **found.values}
            return Entry(kind=kind, uuid=uuid, pool=found.pool, values=values, is_split=True)
        return found

    def entry_of_image(self, image: str, uuid: str) -> Entry | None:
        """Return the volume's or snapshot's entry that an image of this name belongs to."""
        for kind in (VOLUMES, SNAPSHOTS):
            entry = self.entry(kind, uuid)
            if entry is not None and entry.image_name == image:
                return entry
        return None

    def has_entry(self, uuid: str) -> bool:
        """Whether a volume or a snapshot has this uuid, in whatever state."""
        return any(self.modified_at(kind.prefix + uuid) is not None for kind in (VOLUMES, SNAPSHOTS))

    def image(self, name: str, pool: Pool | None = None) -> ImageState:
        """Return what there is of an image. 3 operations."""
        place = pool or self.pool
        listed_id = registries.ids_of(place, [name]).get(name, "")
        id_object: str | None
        try:
            id_object = read_image_id(place, name)
        except ImageNotFound:
            id_object = None if headers.modified_at(place, ID_OBJECT_PREFIX + name) is None else ""
        header = next((one for one in (self.header(i, place) for i in (id_object, listed_id) if i) if one), None)
        return ImageState(name=name, id_object=id_object, listed_id=listed_id, header=header)

    def image_of_uuid(self, kind: Kind, uuid: str, pool: Pool | None = None) -> ImageState | None:
        """Return the image whose name ends in a uuid: by the usual prefix, or by what the scan has seen here."""
        for name in (kind.image_prefix + uuid, self.hints.images_by_uuid.get(uuid, "")):
            state = self.image(name, pool) if name else None
            if state is not None and state.header is not None:
                return state
        return None

    def header(self, image_id: str, pool: Pool | None = None) -> Header | None:
        """Return an image's header, None when there is none."""
        try:
            return headers.read_header(pool or self.pool, image_id)
        except ImageNotFound:
            return None

    def modified_at(self, name: str, pool: Pool | None = None) -> float | None:
        """Return when an object was last written, None when there is none."""
        return headers.modified_at(pool or self.pool, name)

    def pool_at(self, pool_id: int, namespace: str) -> Pool:
        """Return another pool; raises PoolNotFound."""
        return self.connection.pool_with_id(pool_id, namespace)

    def journal_pool(self, entry: Entry) -> Pool | None:
        """Return the pool with the directory that names an entry, None when it is gone."""
        if entry.journal_pool_id is None:
            return entry.pool
        try:
            return self.pool_at(entry.journal_pool_id, self.pool.namespace)
        except PoolNotFound:
            return None

    def tasks(self) -> list[Task]:
        """Return the manager's tasks in this pool and namespace, up to 2 s old; raises BackendTimeout and the like."""
        return self.task_list.read(self._ask_for_tasks)

    def _ask_for_tasks(self) -> list[Task]:
        command = {"prefix": "rbd task list", "format": "json"}
        try:
            answer = self.connection.manager_command(command, timeout=self.manager_timeout)
        except (ArgumentRefused, PermissionDenied):
            # A manager that takes no tasks from this user has none of its own either: controllers do without.
            return []
        return [task for one in json.loads(answer or "[]") if (task := self._task(one)) is not None]

    def locks(self, entry: Entry) -> LockKeys:
        """Return what a call on an entry's volume or snapshot locks."""
        keys = (entry.name, self._handle(entry))
        return LockKeys(keys=tuple(key for key in keys if key), noun=noun_of(entry.kind))

    def _handle(self, entry: Entry) -> str:
        if not self.cluster_id:
            return ""
        try:
            return str(VolumeId(cluster_id=self.cluster_id, pool_id=entry.pool.pool_id, uuid=entry.uuid))
        except InvalidVolumeId:
            return ""

    def _task(self, one: dict[str, object]) -> Task | None:
        refs = one.get("refs")
        if not isinstance(refs, dict):
            return None
        if (refs.get("pool_name"), refs.get("pool_namespace") or "") != (self.pool.name, self.pool.namespace):
            return None
        return Task(
            task_id=str(one.get("id", "")),
            image_id=str(refs.get("image_id") or ""),
            image_name=str(refs.get("image_name") or ""),
            action=str(refs.get("action") or ""),
            retries=int(str(one.get("retry_attempts") or 0)),
            reason=str(one.get("retry_message") or ""),
        )
