"""Making a group snapshot: step after step, and back.

Each step is found again by the name of the journal's entry, and can be made again; group_snapshots.py says what is left
when one is cut off.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from csi_host.errors import Aborted
from csi_host_rbd.ceph import groups
from csi_host_rbd.group_journal import GroupEntry, GroupJournal
from csi_host_rbd.group_members import Member, Members
from csi_host_rbd.group_parameters import GroupSnapshotParameters
from csi_host_rbd.image_naming import TEMPORARY_SUFFIX
from csi_host_rbd.places import Place
from csi_host_rbd.reservations import Reservation
from csi_host_rbd.snapshots import Snapshots, WantedSnapshot
from csi_host_rbd.taking_back import take_back_after


@dataclass(frozen=True, kw_only=True)
class WantedGroupSnapshot:
    """What CreateVolumeGroupSnapshot asks for."""

    name: str
    volume_ids: Sequence[str]
    parameters: GroupSnapshotParameters


@dataclass(frozen=True, kw_only=True)
class Making:
    """A call that makes a group snapshot of ``members``, which it holds; ``cluster_id`` is the one for its handles."""

    wanted: WantedGroupSnapshot
    secrets: Mapping[str, str]
    members: Sequence[Member]
    cluster_id: str

    @property
    def place(self) -> Place:
        """Where all of it is."""
        return self.members[0].place

    @property
    def journal(self) -> GroupJournal:
        """The journal of group snapshots there."""
        return GroupJournal(self.place.groups)

    def handle(self, reservation: Reservation) -> str:
        """Return what the CO calls the group snapshot."""
        return str(replace(self.place.handle(reservation), cluster_id=self.cluster_id))


class GroupMaker:
    """Makes group snapshots and takes them away."""

    def __init__(self, *, members: Members, snapshots: Snapshots) -> None:
        self._members = members
        self._snapshots = snapshots

    def make(self, making: Making) -> GroupEntry:
        """Make one from the beginning.

        Raises VolumesApart, ImageInGroup, TooManySnapshots, all before anything is written.
        """
        for member in making.members:
            self._members.check(member, making.secrets)
        entry = making.journal.reserve(
            making.wanted.name,
            prefix=making.wanted.parameters.name_prefix,
            volume_ids=[member.volume_id for member in making.members],
        )
        return self.go_on(making, entry)

    def go_on(self, making: Making, entry: GroupEntry) -> GroupEntry:
        """Make what is missing of one, and return its whole entry; after a final error nothing of it is left."""
        try:
            parts = self._parts(making, entry)
            if parts is None:
                parts = self._take(making, entry)
            snapshots = {
                member.volume_id: self._snapshot_of(making, entry, member, parts[member.source.image_name])
                for member in making.members
            }
            making.journal.store_snapshots(entry, snapshots)
            self.dissolve(making.place, entry)
        except Exception as error:
            take_back_after(error, lambda: self._undo(making, entry))
            raise
        return making.journal.entry(entry.reservation)

    def dissolve(self, place: Place, entry: GroupEntry) -> None:
        """Remove the group and its snapshot; the clones keep what they need of that. 1 operation when it is gone."""
        groups.remove_group(place.pool, _temporary_group(entry))

    def remove(self, place: Place, entry: GroupEntry, secrets: Mapping[str, str], cluster_id: str) -> None:
        """Remove all but the entry; what is gone is fine. Raises OperationPending, SnapshotInUse."""
        # The group's snapshot goes after those that are made of it: without it they count as another time's.
        self._remove_snapshots(place, entry, secrets, cluster_id)
        self.dissolve(place, entry)

    def _parts(self, making: Making, entry: GroupEntry) -> Mapping[str, int] | None:
        """Return the members' parts of the group's snapshot by image, None when it is not there for all of them."""
        parts = groups.snapshot_ids(making.place.pool, _temporary_group(entry))
        images = {member.source.image_name for member in making.members}
        return parts if parts is not None and images <= parts.keys() else None

    def _take(self, making: Making, entry: GroupEntry) -> Mapping[str, int]:
        pool, group = making.place.pool, _temporary_group(entry)
        # What was cloned of an earlier one is of another point in time.
        self._remove_snapshots(making.place, entry, making.secrets, making.cluster_id)
        groups.create_group(pool, group)
        for member in making.members:
            groups.add_image(pool, group, member.source.image_name)
        groups.take_snapshot(pool, group)
        making.journal.store_time(entry)
        parts = self._parts(making, entry)
        if parts is None:
            raise Aborted(f"the snapshot of group {pool.spec(group)} was removed while it was taken; ask again")
        return parts

    def _snapshot_of(self, making: Making, entry: GroupEntry, member: Member, part: int) -> str:
        wanted = WantedSnapshot(
            name=entry.snapshot_name(member.volume_id),
            volume_id=member.volume_id,
            parameters=replace(making.wanted.parameters.of_snapshots, owner=member.source.owner),
            group_id=making.handle(entry.reservation),
        )
        with self._members.part(member, part, making.secrets) as original:
            return self._snapshots.make_of(original, wanted).snapshot_id

    def _undo(self, making: Making, entry: GroupEntry) -> None:
        self.remove(making.place, entry, making.secrets, making.cluster_id)
        making.journal.withdraw(entry)

    def _remove_snapshots(self, place: Place, entry: GroupEntry, secrets: Mapping[str, str], cluster_id: str) -> None:
        for volume_id, known in entry.members.items():
            handle = known
            if not handle:
                found = place.snapshots.find(entry.snapshot_name(volume_id))
                handle = "" if found is None else str(replace(place.handle(found), cluster_id=cluster_id))
            if handle:
                self._snapshots.delete(handle, secrets, with_group=entry.reservation.uuid)


def _temporary_group(entry: GroupEntry) -> str:
    return entry.reservation.image_name + TEMPORARY_SUFFIX
