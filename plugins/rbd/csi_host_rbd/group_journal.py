"""The journal's entries of group snapshots: the volumes of each, and the snapshot that was made of each volume.

An entry has a key for every volume, its handle. The values are empty until all snapshots are whole, and are then
written in one operation: either all snapshots of a group are known or none.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from csi_host_rbd.journal import Journal
from csi_host_rbd.reservations import Reservation

_CREATED_AT = "csi.creationtime"
_OWN_KEYS = "csi."
_NANOSECONDS = 10**9


@dataclass(frozen=True, kw_only=True)
class GroupEntry:
    """A group snapshot with its ``members``: the handles of the snapshots by those of the volumes.

    ``created_at`` is None when the entry does not say it.
    """

    reservation: Reservation
    members: Mapping[str, str]
    created_at: datetime | None

    @property
    def is_whole(self) -> bool:
        """Whether all snapshots were made."""
        return bool(self.members) and all(self.members.values())

    def snapshot_name(self, volume_id: str) -> str:
        """Return what a volume's snapshot is called in the journal: no CO gives such a name."""
        return f"{self.reservation.image_name} of {volume_id}"


class GroupJournal:
    """The entries in the journal of one pool."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def find(self, name: str) -> GroupEntry | None:
        """Return the entry of a CO name, None when there is none. 4 operations."""
        reservation = self._journal.find(name)
        return None if reservation is None else self.entry(reservation)

    def entry(self, reservation: Reservation) -> GroupEntry:
        """Return the entry of a reservation. 2 operations."""
        values = self._journal.values(reservation)
        return GroupEntry(
            reservation=reservation,
            members={key: value for key, value in values.items() if not key.startswith(_OWN_KEYS)},
            created_at=_time_of(values.get(_CREATED_AT, "")),
        )

    def reserve(self, name: str, *, prefix: str, volume_ids: Iterable[str]) -> GroupEntry:
        """Reserve a CO name that ``find`` did not find. 2 operations. Raises NameTaken."""
        members = dict.fromkeys(volume_ids, "")
        now = _now()
        reservation = self._journal.reserve(name, prefix=prefix, more={**members, _CREATED_AT: now})
        return GroupEntry(reservation=reservation, members=members, created_at=_time_of(now))

    def store_time(self, entry: GroupEntry) -> None:
        """Write down that the snapshot was taken now. 1 operation."""
        self._journal.store(entry.reservation, {_CREATED_AT: _now()})

    def store_snapshots(self, entry: GroupEntry, snapshots: Mapping[str, str]) -> None:
        """Write down the handles of all snapshots by those of the volumes. 1 operation."""
        self._journal.store(entry.reservation, snapshots)

    def undo(self, entry: GroupEntry) -> None:
        """Drop the entry; what it names must be gone. 2 operations."""
        self._journal.undo(entry.reservation)

    def withdraw(self, entry: GroupEntry) -> None:
        """Drop the entry of a group snapshot whose handle nobody was given. 2 operations."""
        self._journal.withdraw(entry.reservation)


def _now() -> str:
    """Return the time as ceph-csi writes it, with nanoseconds."""
    seconds, nanoseconds = divmod(time.time_ns(), _NANOSECONDS)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"


def _time_of(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
