"""The journal: which CO name belongs to which image, in ceph-csi's layout.

A directory object ``csi.volumes.<instance>`` has a key ``csi.volume.<CO name>`` for every volume, whose value is a
uuid; an object ``csi.volume.<uuid>`` beside it says the rest. What is on disk between two steps of ``reserve`` and
``undo`` can be read by both drivers:

* the name is claimed in one operation, which fails when another controller was faster, then the uuid's object is made
  with all its keys in one operation: a crash leaves a name without an object, never half a one. Nobody is in the way of
  the next call: it goes on with the uuid that the name leads to, and of two that do so one gets to make the object;
* ``undo`` drops the name first, and only while it still points at our uuid: after a crash the object still knows its
  name and is found by its handle. ``withdraw`` is for what nobody has a handle of, and goes the other way round: after
  a crash the name leads to nothing again.

A write that timed out may still be applied when the OSD comes back. This is harmless: each is conditional, on the name
being free, or on the object not being there.
"""

import logging
import uuid as uuids
from collections.abc import Callable, Mapping
from contextlib import suppress

from csi_host.errors import Aborted, CsiError, Internal
from csi_host_rbd.ceph import omap
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.failures import (
    KeyMismatch,
    ObjectExists,
    ObjectNotFound,
    PoolNotFound,
)
from csi_host_rbd.image_naming import uuid_in
from csi_host_rbd.reservations import VOLUMES, Kind, Reservation

log = logging.getLogger(__name__)

_IMAGE_ID = "csi.imageid"
_JOURNAL_POOL = "csi.journalpool"
_OWNER = "csi.volume.owner"
_SOURCE = "csi.source"
_KMS_ID = "csi.volume.encryptKMS"
_ENCRYPTION_TYPE = "csi.volume.encryptionType"
_GROUP_ID = "csi.groupid"
_ATTEMPTS = 5


class NamesMismatch(Internal):
    """The directory and the uuid's object name different volumes; only a person can tell which is right."""


class NameTaken(Aborted):
    """Another controller has claimed the name a moment ago; the next call finds what it made."""


class Journal:
    """The journal in one pool; ``pool_with_id`` finds the others that an entry may point to."""

    def __init__(
        self,
        *,
        pool: Pool,
        instance_id: str,
        pool_with_id: Callable[[int], Pool],
        kind: Kind = VOLUMES,
    ) -> None:
        self._pool = pool
        self._pool_with_id = pool_with_id
        self._kind = kind
        self._directory = kind.directory + instance_id

    def find(self, name: str) -> Reservation | None:
        """Return the reservation of a CO name, None when there is none, or none but the name; a stale one is undone.

        Costs 1 operation, 2 when there is one. Raises NamesMismatch.
        """
        value = self._directory_value(self._pool, name)
        if value is None:
            return None
        pool, uuid = self._locate(value)
        found = None if pool is None else self._read(pool, uuid, journal_pool=self._pool)
        if found is None and self._is_begun(value):
            return None
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
        group_id: str = "",
        more: Mapping[str, str] | None = None,
    ) -> Reservation:
        """Reserve a CO name that ``find`` did not find; ``more`` are further keys.

        2 operations, 3 more after a crash. Raises NameTaken.
        """
        for _ in range(_ATTEMPTS):
            uuid = self._claim(name)
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
                group_id=group_id,
            )
            with suppress(ObjectExists):
                self._create(reservation, more or {})
                return reservation
        raise Internal(f"{_ATTEMPTS} random uuids were all taken in pool {self._pool.name}")

    def store_image_id(self, reservation: Reservation, image_id: str) -> None:
        """Write the image's id, by which it is found in the trash; raises ObjectNotFound once undone. 1 operation."""
        self.store(reservation, {_IMAGE_ID: image_id})

    def store(self, reservation: Reservation, values: Mapping[str, str]) -> None:
        """Write keys of the uuid's object; raises ObjectNotFound once undone. 1 operation."""
        omap.update_keys(reservation.pool, self._object(reservation.uuid), values)

    def values(self, reservation: Reservation) -> dict[str, str]:
        """Return all keys of the uuid's object, empty once undone. 1 operation for 512, and 1."""
        values: dict[str, str] = {}
        try:
            while page := omap.read_page(
                reservation.pool, self._object(reservation.uuid), start_after=max(values, default="")
            ):
                values |= page
        except ObjectNotFound:
            return {}
        return values

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

    def withdraw(self, reservation: Reservation) -> None:
        """Take back a reservation whose handle nobody was given; the image must be gone. 2 operations."""
        omap.remove_object(reservation.pool, self._object(reservation.uuid))
        self._drop_name(reservation.journal_pool, reservation.name, reservation.directory_value)

    def _claim(self, name: str) -> str:
        """Return the uuid that the name leads to from now on: a new one, or that of a reservation that was cut off."""
        uuid = str(uuids.uuid4())
        try:
            omap.claim_key(self._pool, self._directory, self._key(name), uuid)
        except KeyMismatch as error:
            value = self._directory_value(self._pool, name) or ""
            if not self._is_begun(value) or self.read(value) is not None:
                raise _taken(name) from error
            return value
        return uuid

    def _create(self, reservation: Reservation, more: Mapping[str, str]) -> None:
        """Make the uuid's object; raises ObjectExists when it is another volume's, NameTaken when it is this one's."""
        values = {**more, self._kind.name_key: reservation.name, self._kind.image_key: reservation.image_name}
        optional = {
            _OWNER: reservation.owner,
            _SOURCE: reservation.source,
            _KMS_ID: reservation.kms_id,
            _ENCRYPTION_TYPE: reservation.encryption_type,
            _GROUP_ID: reservation.group_id,
        }
        values |= {key: value for key, value in optional.items() if value}
        try:
            omap.create_object(self._pool, self._object(reservation.uuid), values)
        except CsiError as error:
            # After an error that leaves the outcome open the next call goes on from here.
            if error.is_final:
                self._give_up(reservation, because_of=error)
            raise

    def _give_up(self, reservation: Reservation, *, because_of: CsiError) -> None:
        """Drop the name whose object could not be made, unless another controller has made it: NameTaken."""
        try:
            there = self.read(reservation.uuid)
            if there is not None and there.name == reservation.name:
                raise _taken(reservation.name) from because_of
            self._drop_name(self._pool, reservation.name, reservation.uuid)
        except NameTaken:
            raise
        except CsiError as error:
            raise Aborted(f"{because_of}; and the name could not be given back yet: {error}") from because_of

    def _is_begun(self, value: str) -> bool:
        """Whether a value of the directory may be that of a reservation whose object is still to be made."""
        return uuid_in(value) == value != ""

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
            image_name=values.get(self._kind.image_key) or self._kind.image_prefix + uuid,
            image_id=values.get(_IMAGE_ID, ""),
            owner=values.get(_OWNER, ""),
            source=values.get(_SOURCE, ""),
            kms_id=values.get(_KMS_ID, ""),
            # ceph-csi before v3.8 knew one type only, and did not write it.
            encryption_type=values.get(_ENCRYPTION_TYPE) or ("block" if values.get(_KMS_ID) else ""),
            group_id=values.get(_GROUP_ID, ""),
        )

    def _attributes(self) -> list[str]:
        return [
            self._kind.name_key,
            self._kind.image_key,
            _IMAGE_ID,
            _JOURNAL_POOL,
            _OWNER,
            _SOURCE,
            _KMS_ID,
            _ENCRYPTION_TYPE,
            _GROUP_ID,
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


def _taken(name: str) -> NameTaken:
    return NameTaken(f"another controller has just begun what is named {name}")
