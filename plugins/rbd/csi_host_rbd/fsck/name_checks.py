"""Names in the journal's directory, and the entries that they lead to."""

from dataclasses import dataclass

from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.failures import PoolNotFound
from csi_host_rbd.ceph.headers import has_metadata
from csi_host_rbd.fsck import steps
from csi_host_rbd.fsck.classes import CLASSES
from csi_host_rbd.fsck.entry_checks import examine_image_of
from csi_host_rbd.fsck.findings import Finding, LockKeys, Step
from csi_host_rbd.fsck.look import Look
from csi_host_rbd.fsck.names import split_value
from csi_host_rbd.fsck.records import Entry, ImageState, noun_of
from csi_host_rbd.reservations import GROUPS, SNAPSHOTS, Kind
from csi_host_rbd.volume_id import InvalidVolumeId, VolumeId

_ENCRYPTION = ("rbd.csi.ceph.com/encrypted", ".rbd.csi.ceph.com/encrypted")


@dataclass(frozen=True, kw_only=True)
class _Key:
    """A key of a directory."""

    kind: Kind
    directory: str
    name: str

    def finding(self, name: str, cause: str, *, mend: tuple[Step, ...] = (), since: float = 0.0) -> Finding:
        return Finding(
            kind=CLASSES[name],
            cause=cause,
            objects=(f"{self.directory}:{self.kind.prefix}{self.name}",),
            steps=mend,
            since=since,
            locks=LockKeys(keys=(self.name,) if self.name else (), noun=noun_of(self.kind)),
        )


def examine_name(look: Look, kind: Kind, name: str) -> list[Finding]:
    """Follow a name of our instance's directory to its entry and image."""
    directory = look.directory(kind)
    value = look.value(directory, kind, name)
    if value is None:
        return []
    drop = steps.drop_name(look.pool, directory, kind, name, value)
    key = _Key(kind=kind, directory=directory, name=name)
    if not name:
        return [key.finding("empty-name", f"the key leads to {value!r}", mend=(drop,))]
    pool_id, uuid = split_value(value)
    if not uuid:
        return [] if _is_handle(value) else [key.finding("name-unreadable", f"the value is {value!r}")]
    return _follow(look, key, pool_id, uuid, drop)


def _follow(look: Look, key: _Key, pool_id: str, uuid: str, drop: Step) -> list[Finding]:
    try:
        pool = look.pool_at(int(pool_id, 16), look.pool.namespace) if pool_id else look.pool
        entry = look.entry_of_value(key.kind, pool_id, uuid)
    except PoolNotFound:
        return [key.finding("stale-name", f"it leads to pool {pool_id}, which does not exist", mend=(drop,))]
    if entry is None:
        nothing = Entry(kind=key.kind, uuid=uuid, pool=pool, values={})
        # Nothing has an age here. A controller that has just claimed the name makes the object exclusively, and so
        # either has made it now, or is turned away.
        return [_without_keys(look, key, nothing, (steps.block_entry(nothing), drop, steps.drop_entry(nothing)))]
    if not entry.name:
        return [_without_keys(look, key, entry, (steps.drop_entry(entry), drop))]
    if entry.name != key.name:
        return [key.finding("names-mismatch", f"object {entry.object_name} has the name {entry.name!r}")]
    return examine_image_of(look, entry, drop)


def _without_keys(look: Look, key: _Key, entry: Entry, undo: tuple[Step, ...]) -> Finding:
    kind, pool = entry.kind, entry.pool
    modified = look.modified_at(entry.object_name, pool)
    since = modified or 0.0
    what = f"object {entry.object_name} is {'missing' if modified is None else 'without its keys'}"
    image = None if kind is GROUPS else look.image_of_uuid(kind, entry.uuid, pool)
    if image is None:
        # What an image of another pool may be called is only seen there.
        is_here = pool.pool_id == look.pool.pool_id
        return key.finding("stale-name", what, mend=undo if is_here else (), since=since)
    reason = _why_not_restorable(pool, kind, image)
    values = {kind.name_key: key.name, "csi.imagename": image.name, "csi.imageid": image.image_id}
    mend = () if reason else (steps.restore_entry(pool, kind, entry.uuid, values),)
    return key.finding("lost-entry", f"{what}, and image {image.name} is there{reason}", mend=mend, since=since)


def _why_not_restorable(pool: Pool, kind: Kind, image: ImageState) -> str:
    if kind is SNAPSHOTS:
        return "; which volume it was taken of is not known"
    if has_metadata(pool, image.image_id, *_ENCRYPTION):
        return "; it is encrypted, and which KMS has its key is not known"
    return ""


def _is_handle(value: str) -> bool:
    # The disaster recovery of ceph-csi v3.2 left a handle under a handle.
    try:
        VolumeId.parse(value)
    except InvalidVolumeId:
        return False
    return True
