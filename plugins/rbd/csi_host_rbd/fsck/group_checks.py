"""Groups: the journal's entries and librbd's groups.

An entry is either a group of volumes, which has a group of librbd's, or a group of snapshots, which needs none: its
members are the keys whose values are handles of snapshots.
"""

from collections.abc import Mapping

from csi_host_rbd.ceph.registries import find_group, is_group_empty
from csi_host_rbd.fsck import steps
from csi_host_rbd.fsck.classes import CLASSES
from csi_host_rbd.fsck.findings import Finding, Step
from csi_host_rbd.fsck.look import Look
from csi_host_rbd.fsck.names import uuid_at_end
from csi_host_rbd.fsck.records import Entry
from csi_host_rbd.reservations import GROUPS, SNAPSHOTS
from csi_host_rbd.volume_id import InvalidVolumeId, VolumeId


def group_of_entry(look: Look, entry: Entry, drop: Step) -> list[Finding]:
    """Look for the group of an entry, or for its snapshots."""
    members = _members(entry.values)
    if any(members.values()):
        return _missing_snapshots(look, entry, members)
    if find_group(look.pool, entry.image_name) is not None:
        return []
    return [
        Finding(
            kind=CLASSES["group-missing"],
            cause=f"there is no group {entry.image_name}",
            objects=(entry.object_name, entry.image_name),
            steps=(steps.drop_entry(entry), drop) if not members else (),
            since=look.modified_at(entry.object_name) or 0.0,
            locks=look.locks(entry),
        )
    ]


def examine_group(look: Look, name: str) -> list[Finding]:
    """Look whether a group that ends in a uuid has an entry."""
    group = find_group(look.pool, name)
    uuid = uuid_at_end(name)
    if group is None or not uuid or look.modified_at(GROUPS.prefix + uuid) is not None:
        return []
    return [
        Finding(
            kind=CLASSES["group-without-entry"],
            cause=f"no object of the journal has the uuid {uuid}",
            objects=(name,),
            steps=(steps.remove_group(look.pool, name),) if is_group_empty(look.pool, group) else (),
            since=look.modified_at(group.header) or 0.0,
        )
    ]


def _members(values: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in values.items() if not key.startswith("csi.")}


def _missing_snapshots(look: Look, entry: Entry, members: Mapping[str, str]) -> list[Finding]:
    gone = [handle for handle in members.values() if handle and _is_gone(look, handle)]
    if not gone:
        return []
    cause = f"its snapshots {', '.join(gone)} have no entry"
    since = look.modified_at(entry.object_name) or 0.0
    return [Finding(kind=CLASSES["group-member-missing"], cause=cause, objects=(entry.object_name, *gone), since=since)]


def _is_gone(look: Look, handle: str) -> bool:
    try:
        snapshot = VolumeId.parse(handle)
    except InvalidVolumeId:
        return False
    if snapshot.pool_id != look.pool.pool_id:
        return False
    return look.modified_at(SNAPSHOTS.prefix + snapshot.uuid) is None
