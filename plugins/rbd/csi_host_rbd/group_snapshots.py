"""A group snapshot's life on the cluster: a snapshot of several volumes at one point in time.

The volumes' images are put into a group of librbd's for a moment and a snapshot of it is taken. Each image's part of
that is cloned to an ordinary snapshot's image (snapshots.py), which knows the group snapshot that it belongs to. Then
the group and its snapshot are removed: what stays is one snapshot a volume, and the journal's entry that names them.

What each failure leaves behind, and who mends it:

* an entry without handles of snapshots was cut off. While the group's snapshot is there, the next call clones what is
  not cloned yet. Without it, the clones that are there are of another point in time: they go, and it is taken anew;
* an entry with handles is whole once all its snapshots are. One that lacks some was being deleted: that is finished;
* a group that nobody comes back for is in nobody's way: deleting one of its volumes, or taking another group snapshot,
  removes it, as whoever is at work on it holds the volumes.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from csi_host.errors import InvalidArgument
from csi_host.locks import Operation
from csi_host_rbd.ceph import groups
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.errors import GroupSnapshotDiffers, GroupSnapshotNotFound, SnapshotNotFound
from csi_host_rbd.group_journal import GroupEntry, GroupJournal
from csi_host_rbd.group_locks import GroupLocks
from csi_host_rbd.group_making import GroupMaker, Making, WantedGroupSnapshot
from csi_host_rbd.group_members import Members
from csi_host_rbd.listed_snapshots import SeenSnapshots
from csi_host_rbd.opening import images_may_go
from csi_host_rbd.places import Place, Places, lock_key
from csi_host_rbd.reservations import GROUPS, Reservation
from csi_host_rbd.snapshot import Snapshot
from csi_host_rbd.snapshots import Snapshots

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class GroupSnapshot:
    """A group snapshot that exists; ``snapshots`` are in the order of their volumes' handles."""

    group_id: str
    snapshots: Sequence[Snapshot]
    created_at: datetime

    @property
    def is_ready(self) -> bool:
        """Whether volumes can be made from all its snapshots."""
        return all(one.is_ready for one in self.snapshots)


class GroupSnapshots:
    """The group snapshots of the clusters in the configuration."""

    def __init__(
        self, *, places: Places, members: Members, snapshots: Snapshots, seen: SeenSnapshots, locks: GroupLocks
    ) -> None:
        self._places = places
        self._members = members
        self._snapshots = snapshots
        self._maker = GroupMaker(members=members, snapshots=snapshots)
        self._seen = seen
        self._locks = locks

    def create(self, wanted: WantedGroupSnapshot, secrets: Mapping[str, str]) -> GroupSnapshot:
        """Take the group snapshot, or return the one that an earlier call of this name took.

        Raises VolumeNotFound, VolumesApart, ImageInGroup, TooManySnapshots, GroupSnapshotDiffers.
        """
        with (
            images_may_go(),
            self._locks.hold(wanted.name),
            self._members.held(wanted.volume_ids, secrets) as members,
        ):
            place = members[0].place
            # Before anything is made: whether a handle can be given.
            cluster_id = self._snapshots.cluster_id(wanted.parameters.of_snapshots, place)
            making = Making(wanted=wanted, secrets=secrets, members=members, cluster_id=cluster_id)
            with self._places.hold_name(place.pool, GROUPS, wanted.name):
                return self._create(making)

    def delete(self, handle: str, snapshot_ids: Sequence[str], secrets: Mapping[str, str]) -> None:
        """Delete a group snapshot with all its snapshots; fine when there is none.

        Raises OperationPending while a volume is made from one of them, InvalidArgument for other snapshots.
        """
        with self._locks.hold(lock_key(handle)):
            try:
                with self._places.group(handle, secrets, operation=Operation.DELETE) as (place, reservation):
                    self._delete(place, reservation, snapshot_ids, secrets)
            except GroupSnapshotNotFound as reason:
                log.info(f"nothing to delete: {reason}")

    def get(self, handle: str, snapshot_ids: Sequence[str], secrets: Mapping[str, str]) -> GroupSnapshot:
        """Return the group snapshot of a handle; raises GroupSnapshotNotFound, InvalidArgument for other snapshots."""
        with self._places.group(handle, secrets) as (place, reservation):
            entry = GroupJournal(place.groups).entry(reservation)
        if not entry.is_whole:
            raise GroupSnapshotNotFound(f"group_snapshot_id: {handle} is no whole group snapshot: it is being made")
        _check_snapshots(entry, snapshot_ids)
        try:
            return self._look(handle, entry, secrets)
        except SnapshotNotFound as reason:
            raise GroupSnapshotNotFound(f"group_snapshot_id: {handle} is being removed: {reason}") from reason

    def _create(self, making: Making) -> GroupSnapshot:
        found = making.journal.find(making.wanted.name)
        if found is None:
            return self._made(making, self._maker.make(making))
        _check_same(making, found)
        if not found.is_whole:
            return self._made(making, self._maker.go_on(making, found))
        try:
            there = self._made(making, found)
        except SnapshotNotFound:
            # It was whole, so this is a deletion that was cut off. It is finished first.
            self._maker.remove(making.place, found, making.secrets, making.cluster_id)
            making.journal.undo(found)
            return self._made(making, self._maker.make(making))
        self._maker.dissolve(making.place, found)
        self._hasten(there, making.secrets)
        return there

    def _made(self, making: Making, entry: GroupEntry) -> GroupSnapshot:
        return self._look(making.handle(entry.reservation), entry, making.secrets)

    def _delete(
        self, place: Place, reservation: Reservation, snapshot_ids: Sequence[str], secrets: Mapping[str, str]
    ) -> None:
        # A CreateVolumeGroupSnapshot of the same name must not take over what is being removed.
        names = [reservation.name] if reservation.name else []
        with (
            self._locks.hold(*names),
            self._places.hold_name(reservation.journal_pool, GROUPS, reservation.name),
        ):
            journal = GroupJournal(place.groups)
            entry = journal.entry(reservation)
            _check_is_snapshot(place.pool, entry)
            _check_snapshots(entry, snapshot_ids)
            self._maker.remove(place, entry, secrets, place.cluster.config.cluster_id)
            journal.undo(entry)

    def _look(self, handle: str, entry: GroupEntry, secrets: Mapping[str, str]) -> GroupSnapshot:
        """Return what is there; raises SnapshotNotFound when one of the snapshots is not whole."""
        snapshots = [
            replace(self._seen.get(snapshot_id, secrets), source_volume_id=volume_id, group_id=handle)
            for volume_id, snapshot_id in sorted(entry.members.items())
        ]
        created_at = entry.created_at or min(one.created_at for one in snapshots)
        return GroupSnapshot(group_id=handle, snapshots=snapshots, created_at=created_at)

    def _hasten(self, there: GroupSnapshot, secrets: Mapping[str, str]) -> None:
        """See to it that the snapshots whose chains are too deep get ready."""
        for one in there.snapshots:
            if not one.is_ready:
                with self._places.snapshot(one.snapshot_id, secrets) as (place, reservation):
                    self._snapshots.is_ready(place, reservation, reservation.image_id)


def _check_same(making: Making, found: GroupEntry) -> None:
    wanted, there = {one.volume_id for one in making.members}, {lock_key(one) for one in found.members}
    if wanted != there:
        raise GroupSnapshotDiffers(
            f"name: {making.wanted.name} is a group snapshot of other volumes: {', '.join(sorted(there))}"
        )
    if _is_of_volumes(making.place.pool, found):
        raise GroupSnapshotDiffers(f"name: {making.wanted.name} is a group of volumes, and no group snapshot")


def _check_is_snapshot(pool: Pool, entry: GroupEntry) -> None:
    if _is_of_volumes(pool, entry):
        raise GroupSnapshotNotFound(f"group_snapshot_id: {entry.reservation.image_name} is a group of volumes")


def _is_of_volumes(pool: Pool, entry: GroupEntry) -> bool:
    """Whether it is ceph-csi's entry of a group of volumes, which looks like that of an unfinished group snapshot."""
    return not entry.is_whole and groups.exists(pool, entry.reservation.image_name)


def _check_snapshots(entry: GroupEntry, snapshot_ids: Sequence[str]) -> None:
    """Raise InvalidArgument when the CO means other snapshots; it may name none."""
    ours = {lock_key(one) for one in entry.members.values() if one}
    theirs = {lock_key(one) for one in snapshot_ids}
    if theirs and ours != theirs:
        raise InvalidArgument(
            f"snapshot_ids: expected the snapshots of the group ({', '.join(sorted(ours))}), got "
            f"{', '.join(sorted(theirs))}"
        )
