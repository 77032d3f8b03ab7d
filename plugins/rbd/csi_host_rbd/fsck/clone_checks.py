"""Snapshots and clones that were cut off.

A clone begins with a snapshot on its source, of the clone's own name, and ends with that snapshot's removal; librbd
then keeps what the clone needs of it out of sight. librbd itself makes the clone's image, writes its parent into it,
and tells the parent last.
"""

from csi_host_rbd.ceph.failures import ImageNotFound, PoolNotFound
from csi_host_rbd.ceph.headers import Header, HeaderSnapshot, user_snapshots
from csi_host_rbd.ceph.parents import Parent, children_of, parent_of
from csi_host_rbd.ceph.registries import has_format_1_child, is_mirrored
from csi_host_rbd.fsck import steps
from csi_host_rbd.fsck.classes import CLASSES
from csi_host_rbd.fsck.findings import Finding, LockKeys, Step
from csi_host_rbd.fsck.image_checks import examine_temporary
from csi_host_rbd.fsck.look import Look
from csi_host_rbd.fsck.names import DEFAULT_PREFIXES, TEMPORARY_SUFFIX, is_csi_like, uuid_at_end
from csi_host_rbd.fsck.records import Entry, ImageState


def examine_snapshots(look: Look, name: str, image_id: str) -> list[Finding]:
    """Look for snapshots on an image, which may be in the trash, that a clone was made of and that are left."""
    header = look.header(image_id)
    if header is None or is_mirrored(look.pool, image_id):
        return []
    if examine_temporary(look, name):
        # Its snapshots go with it.
        return []
    left = [one for one in user_snapshots(look.pool, header) if one.name != name and is_csi_like(one.name)]
    return [found for one in left for found in _left_behind(look, name, header, one)]


def examine_clone(look: Look, name: str, image_id: str) -> list[Finding]:
    """Look whether a clone's parent is there and knows of it."""
    try:
        parent = parent_of(look.pool, image_id)
    except ImageNotFound:
        return []
    header = look.header(image_id)
    if parent is None or header is None:
        return []
    try:
        parent_pool = look.pool_at(parent.pool_id, parent.namespace)
    except PoolNotFound:
        return [_of_clone("parent-missing", name, header, f"its parent was in pool {parent.pool_id}, which is gone")]
    parent_header = look.header(parent.image_id, parent_pool)
    if parent_header is None or parent.snapshot_id not in parent_header.snapshot_ids:
        what = f"snapshot {parent.snapshot_id} of image {parent_pool.spec(f'id {parent.image_id}')}"
        return [_of_clone("parent-missing", name, header, f"{what} is gone: what was not written reads as zeros")]
    if _is_registered(look, parent, image_id):
        return []
    cause = (
        f"image {parent_pool.spec(f'id {parent.image_id}')} would lose its snapshot {parent.snapshot_id} to a removal"
    )
    mend = (steps.attach_child(look, parent_pool, parent, image_id),)
    return [_of_clone("child-not-registered", name, header, cause, mend=mend)]


def _is_registered(look: Look, parent: Parent, image_id: str) -> bool:
    try:
        known = children_of(look.pool_at(parent.pool_id, parent.namespace), parent)
    except PoolNotFound:
        known = []
    child = (look.pool.pool_id, look.pool.namespace, image_id)
    return child in known or has_format_1_child(look.pool, parent, image_id)


def _left_behind(look: Look, name: str, header: Header, snapshot: HeaderSnapshot) -> list[Finding]:
    clone = snapshot.name
    base = clone.removesuffix(TEMPORARY_SUFFIX)
    entry = look.entry_of_image(base, uuid_at_end(base))
    mend = (steps.remove_snapshot(look.pool, header.image_id, clone),)
    if entry is None:
        if not clone.startswith(DEFAULT_PREFIXES) or look.has_entry(uuid_at_end(base)):
            return []
        return [_of_snapshot(look, name, snapshot, "the journal has nothing of this name", mend=mend, entry=None)]
    made = look.image(clone)
    if made.header is None or not _is_complete(look, entry, made):
        return _unfinished(look, name, entry, made, snapshot)
    return [
        _of_snapshot(look, name, snapshot, f"image {clone} is complete and needs it no more", mend=mend, entry=entry)
    ]


def _is_complete(look: Look, entry: Entry, made: ImageState) -> bool:
    try:
        parent = parent_of(look.pool, made.image_id)
    except ImageNotFound:
        return False
    if parent is None:
        # Flattened since, or never attached: only one that was handed out has its id in the journal.
        return bool(entry.image_id)
    return _is_registered(look, parent, made.image_id)


def _unfinished(look: Look, name: str, entry: Entry, made: ImageState, snapshot: HeaderSnapshot) -> list[Finding]:
    """Tell of a clone without a parent; one that has no image yet is told of with its entry."""
    if made.header is None or made.header.has_parent:
        return []
    clone = made.name
    cause = f"image {clone} has no parent, reads as zeros, and {name} still has the snapshot it was to be made of"
    mend = (
        *steps.trash_image(look, clone, made.image_id),
        steps.drop_entry(entry),
        steps.drop_name(look.pool, look.directory(entry.kind), entry.kind, entry.name, entry.uuid),
    )
    since = max(snapshot.created_at, made.header.created_at)
    return [
        Finding(
            kind=CLASSES["clone-unfinished"],
            cause=cause,
            objects=(clone, f"{name}@{snapshot.name}"),
            steps=mend,
            since=since,
            locks=look.locks(entry),
        )
    ]


def _of_snapshot(
    look: Look, name: str, snapshot: HeaderSnapshot, cause: str, *, mend: tuple[Step, ...], entry: Entry | None
) -> Finding:
    return Finding(
        kind=CLASSES["snapshot-left-behind"],
        cause=cause,
        objects=(f"{name}@{snapshot.name}",),
        steps=mend,
        since=snapshot.created_at,
        locks=look.locks(entry) if entry else LockKeys(),
    )


def _of_clone(name: str, clone: str, header: Header, cause: str, *, mend: tuple[Step, ...] = ()) -> Finding:
    return Finding(kind=CLASSES[name], cause=cause, objects=(clone,), steps=mend, since=header.created_at)
