"""The journal: which CO name belongs to which image, in ceph-csi's layout.

A directory object ``csi.volumes.<instance>`` has a key ``csi.volume.<CO name>`` for every volume, whose value is a
uuid; an object ``csi.volume.<uuid>`` beside it says the rest. What is on disk between two steps of ``reserve`` and
``undo`` can be read by both drivers:

* the uuid's object is made with all its keys in one operation, then the name is claimed in one operation that fails
  when another controller was faster: an object without a name is the only thing a crash can leave, never half a one;
* ``undo`` drops the name first, and only while it still points at our uuid: after a crash the object still knows its
  name and is found by its handle.

A write that timed out may still be applied when the OSD comes back. For the claim this is harmless, as the retry reads
the name after it; an object whose making timed out is noted, and removed by a later call unless it got its name.
"""

import logging
import uuid as uuids
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Lock

from csi_host.errors import Aborted, CsiError, Internal
from csi_host_rbd.ceph import omap
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.failures import (
    KeyMismatch,
    ObjectExists,
    ObjectNotFound,
    PoolNotFound,
)

log = logging.getLogger(__name__)

_IMAGE_NAME = "csi.imagename"
_IMAGE_ID = "csi.imageid"
_JOURNAL_POOL = "csi.journalpool"
_OWNER = "csi.volume.owner"
_SOURCE = "csi.source"
_KMS_ID = "csi.volume.encryptKMS"
_ENCRYPTION_TYPE = "csi.volume.encryptionType"
_ATTEMPTS = 5
# A call settles a few that others left, not all of an outage's.
_DOUBTS_A_CALL = 2


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What the journal's objects and keys are called for volumes, and for snapshots."""

    directory: str
    prefix: str
    name_key: str
    image_prefix: str
    has_source: bool = False


VOLUMES = Kind(directory="csi.volumes.", prefix="csi.volume.", name_key="csi.volname", image_prefix="csi-vol-")
SNAPSHOTS = Kind(
    directory="csi.snaps.", prefix="csi.snap.", name_key="csi.snapname", image_prefix="csi-snap-", has_source=True
)


class NamesMismatch(Internal):
    """The directory and the uuid's object name different volumes; only a person can tell which is right."""


class NameTaken(Aborted):
    """Another controller has claimed the name a moment ago; the next call finds what it made."""


@dataclass(frozen=True, kw_only=True)
class Reservation:
    """A CO name with the image that belongs to it.

    ``pool`` is the image's; ``journal_pool`` is where the directory is, the same one but for volumes that ceph-csi
    before v3.11 made in topology mode. ``name`` is "" when the object of a handle has lost its keys. ``source`` is the
    image that a snapshot was taken of; ``kms_id`` and ``encryption_type`` are "" for what is not encrypted.
    """

    name: str
    uuid: str
    pool: Pool
    journal_pool: Pool
    image_name: str
    image_id: str = ""
    owner: str = ""
    source: str = ""
    kms_id: str = ""
    encryption_type: str = ""

    @property
    def directory_value(self) -> str:
        """What the directory has under the name."""
        if self.journal_pool.pool_id == self.pool.pool_id:
            return self.uuid
        return f"{self.pool.pool_id:016x}/{self.uuid}"


class Doubts:
    """The uuids whose object may still appear without a name, as a write of theirs timed out; by uuid the name."""

    def __init__(self) -> None:
        self._guard = Lock()
        self._names: dict[str, str] = {}

    def note(self, uuid: str, name: str) -> None:
        """Remember a uuid."""
        with self._guard:
            self._names[uuid] = name

    def take(self) -> tuple[str, str] | None:
        """Return a uuid and its name, and forget it; None when there is none."""
        with self._guard:
            return self._names.popitem() if self._names else None

    def all(self) -> dict[str, str]:
        """Return what is remembered."""
        with self._guard:
            return dict(self._names)


class Journal:
    """The journal in one pool; ``pool_with_id`` finds the others that an entry may point to."""

    def __init__(
        self,
        *,
        pool: Pool,
        instance_id: str,
        pool_with_id: Callable[[int], Pool],
        doubts: Doubts,
        kind: Kind = VOLUMES,
    ) -> None:
        self._pool = pool
        self._pool_with_id = pool_with_id
        self._doubts = doubts
        self._kind = kind
        self._directory = kind.directory + instance_id

    def find(self, name: str) -> Reservation | None:
        """Return the reservation of a CO name, None when there is none; a stale one is undone.

        Costs 1 operation, 2 when there is one. Raises NamesMismatch.
        """
        self._settle_doubts()
        value = self._directory_value(self._pool, name)
        if value is None:
            return None
        pool, uuid = self._locate(value)
        found = None if pool is None else self._read(pool, uuid, journal_pool=self._pool)
        if found is None or not found.name or (self._kind.has_source and not found.source):
            log.warning(f"the reservation of {name} in pool {self._pool.name} is stale ({value}) and is undone")
            self._drop_name(self._pool, name, value)
            if pool is not None:
                omap.remove_object(pool, self._object(uuid))
            return None
        if found.name != name:
            raise NamesMismatch(
                f"internal state inconsistent, omap names mismatch: object {self._object(uuid)} of pool "
                f"{found.pool.name} has the name {found.name!r}, and {self._directory} leads to it from {name!r}"
            )
        return found

    def read(self, uuid: str) -> Reservation | None:
        """Return the reservation of a handle's uuid, None when there is none. 1 operation."""
        return self._read(self._pool, uuid, journal_pool=None)

    def names(self, *, start_after: str = "", entries: int) -> list[tuple[str, str]]:
        """Return up to ``entries`` CO names after one, in order, each with what the directory has for it.

        1 operation; an empty list is the end.
        """
        try:
            page = omap.read_page(
                self._pool,
                self._directory,
                start_after=self._key(start_after),
                prefix=self._kind.prefix,
                entries=entries,
            )
        except ObjectNotFound:
            return []
        return [(key.removeprefix(self._kind.prefix), value) for key, value in page.items()]

    def reservation(self, name: str, value: str) -> Reservation | None:
        """Return what a directory entry leads to, None when it is stale; nothing is undone. 1 operation."""
        pool, uuid = self._locate(value)
        found = None if pool is None else self._read(pool, uuid, journal_pool=self._pool)
        return found if found is not None and found.name == name else None

    def reserve(
        self,
        name: str,
        *,
        prefix: str = "",
        owner: str = "",
        source: str = "",
        kms_id: str = "",
        encryption_type: str = "",
    ) -> Reservation:
        """Reserve a CO name that ``find`` did not find. 2 operations. Raises NameTaken."""
        for _ in range(_ATTEMPTS):
            uuid = str(uuids.uuid4())
            reservation = Reservation(
                name=name,
                uuid=uuid,
                pool=self._pool,
                journal_pool=self._pool,
                image_name=(prefix or self._kind.image_prefix) + uuid,
                owner=owner,
                source=source,
                kms_id=kms_id,
                encryption_type=encryption_type,
            )
            try:
                self._write(reservation)
            except ObjectExists:
                continue
            return reservation
        raise Internal(f"{_ATTEMPTS} random uuids were all taken in pool {self._pool.name}")

    def store_image_id(self, reservation: Reservation, image_id: str) -> None:
        """Write the image's id, by which it is found in the trash; raises ObjectNotFound once undone. 1 operation."""
        omap.update_keys(reservation.pool, self._object(reservation.uuid), {_IMAGE_ID: image_id})

    def undo(self, reservation: Reservation) -> None:
        """Drop the name, then the uuid's object; the image must be gone. 2 operations."""
        if not reservation.uuid:
            return  # a migrated volume, which has no entry
        if reservation.name:
            self._drop_name(reservation.journal_pool, reservation.name, reservation.directory_value)
        omap.remove_object(reservation.pool, self._object(reservation.uuid))
        if reservation.journal_pool.pool_id != reservation.pool.pool_id:
            # ceph-csi v3.0 to v3.10 wrote the keys there.
            omap.remove_object(reservation.journal_pool, self._object(reservation.uuid))

    def _write(self, reservation: Reservation) -> None:
        values = {self._kind.name_key: reservation.name, _IMAGE_NAME: reservation.image_name}
        optional = {
            _OWNER: reservation.owner,
            _SOURCE: reservation.source,
            _KMS_ID: reservation.kms_id,
            _ENCRYPTION_TYPE: reservation.encryption_type,
        }
        values |= {key: value for key, value in optional.items() if value}
        try:
            omap.create_object(self._pool, self._object(reservation.uuid), values)
            omap.claim_key(self._pool, self._directory, self._key(reservation.name), reservation.uuid)
        except ObjectExists:
            raise
        except KeyMismatch as error:
            self._withdraw(reservation)
            raise NameTaken(f"another controller has just begun a volume named {reservation.name}") from error
        except CsiError as error:
            if error.is_final:
                self._withdraw(reservation)
            else:
                self._doubts.note(reservation.uuid, reservation.name)
            raise

    def _withdraw(self, reservation: Reservation) -> None:
        """Remove the object of a reservation that did not get its name; when that fails a later call does it."""
        try:
            omap.remove_object(self._pool, self._object(reservation.uuid))
        except CsiError:
            self._doubts.note(reservation.uuid, reservation.name)

    def _settle_doubts(self) -> None:
        """Remove the objects in doubt that did not get their name.

        The operations of one client on one object are done in order: once the directory has been read, a claim that
        was sent before has been made or never will be.
        """
        for _ in range(_DOUBTS_A_CALL):
            doubt = self._doubts.take()
            if doubt is None:
                return
            uuid, name = doubt
            try:
                if self._directory_value(self._pool, name) != uuid:
                    omap.remove_object(self._pool, self._object(uuid))
            except CsiError as error:
                # It is some other volume's trouble, which must not become this call's.
                log.info(f"object {self._object(uuid)} of pool {self._pool.name} is still in doubt: {error}")
                self._doubts.note(uuid, name)
                return

    def _directory_value(self, pool: Pool, name: str) -> str | None:
        key = self._key(name)
        try:
            return omap.read_keys(pool, self._directory, [key]).get(key)
        except ObjectNotFound:
            return None

    def _locate(self, value: str) -> tuple[Pool | None, str]:
        """Return the pool and the uuid that a value of the directory names; no pool when the cluster has none such."""
        pool_id, slash, uuid = value.rpartition("/")
        if not slash:
            return self._pool, uuid
        try:
            return self._pool_with_id(int(pool_id, 16)), uuid
        except (PoolNotFound, ValueError):
            return None, uuid

    def _read(self, pool: Pool, uuid: str, *, journal_pool: Pool | None) -> Reservation | None:
        try:
            values = omap.read_keys(pool, self._object(uuid), self._attributes())
        except ObjectNotFound:
            return None
        if journal_pool is None:
            journal_pool = self._journal_pool(values, pool)
        if self._kind.name_key not in values and journal_pool.pool_id != pool.pool_id:
            values = self._values_in_journal_pool(journal_pool, uuid) | values
        return Reservation(
            name=values.get(self._kind.name_key, ""),
            uuid=uuid,
            pool=pool,
            journal_pool=journal_pool,
            image_name=values.get(_IMAGE_NAME) or self._kind.image_prefix + uuid,
            image_id=values.get(_IMAGE_ID, ""),
            owner=values.get(_OWNER, ""),
            source=values.get(_SOURCE, ""),
            kms_id=values.get(_KMS_ID, ""),
            # ceph-csi before v3.8 knew one type only, and did not write it.
            encryption_type=values.get(_ENCRYPTION_TYPE) or ("block" if values.get(_KMS_ID) else ""),
        )

    def _attributes(self) -> list[str]:
        return [
            self._kind.name_key,
            _IMAGE_NAME,
            _IMAGE_ID,
            _JOURNAL_POOL,
            _OWNER,
            _SOURCE,
            _KMS_ID,
            _ENCRYPTION_TYPE,
        ]

    def _journal_pool(self, values: Mapping[str, str], pool: Pool) -> Pool:
        try:
            return self._pool_with_id(int(values[_JOURNAL_POOL], 16)) if _JOURNAL_POOL in values else pool
        except (PoolNotFound, ValueError):
            return pool

    def _values_in_journal_pool(self, journal_pool: Pool, uuid: str) -> dict[str, str]:
        # ceph-csi v3.0 to v3.10 left the object of the image pool empty and wrote the keys here.
        try:
            return omap.read_keys(journal_pool, self._object(uuid), self._attributes())
        except ObjectNotFound:
            return {}

    def _drop_name(self, pool: Pool, name: str, value: str) -> None:
        try:
            omap.remove_key_if(pool, self._directory, self._key(name), value)
        except (KeyMismatch, ObjectNotFound):
            # Gone already, or taken anew: then it is not ours to remove.
            return

    def _key(self, name: str) -> str:
        return self._kind.prefix + name

    def _object(self, uuid: str) -> str:
        return self._kind.prefix + uuid
