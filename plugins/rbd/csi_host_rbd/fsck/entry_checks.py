"""Entries of the journal, and the image that each stands for.

Name and entry are written before the image; a deletion goes the other way. So what lacks its later half is a call at
work or one that was cut off, and only age tells them apart.
"""

from csi_host_rbd.ceph.headers import user_snapshots
from csi_host_rbd.ceph.registries import names_of, trashed_image
from csi_host_rbd.fsck import steps
from csi_host_rbd.fsck.classes import CLASSES
from csi_host_rbd.fsck.findings import Finding, Step
from csi_host_rbd.fsck.group_checks import group_of_entry
from csi_host_rbd.fsck.look import Look
from csi_host_rbd.fsck.names import split_value
from csi_host_rbd.fsck.records import Entry, ImageState
from csi_host_rbd.reservations import GROUPS, SNAPSHOTS, Kind


def examine_entry(look: Look, kind: Kind, uuid: str) -> list[Finding]:
    """Look whether a name leads to an object of the journal."""
    entry = look.entry(kind, uuid)
    if entry is None:
        return []
    if not entry.name:
        return [] if _is_named_elsewhere(look, entry) else [_nameless(look, entry)]
    journal_pool = look.journal_pool(entry)
    if journal_pool is None:
        return []
    values = [look.value(one, kind, entry.name, journal_pool) for one in sorted(look.directories(kind))]
    if any(split_value(value or "")[1] == uuid for value in values):
        return []
    return _unnamed(look, entry, taken=[value for value in values if value])


def examine_image_of(look: Look, entry: Entry, drop: Step) -> list[Finding]:
    """Look for the image of an entry that has its name."""
    if entry.kind is GROUPS:
        return group_of_entry(look, entry, drop)
    image = look.image(entry.image_name, entry.pool)
    if image.header is not None:
        return _with_image(look, entry, image)
    trashed = entry.image_id or look.hints.trashed_by_name.get(entry.image_name, "")
    deleted = trashed_image(entry.pool, trashed) if trashed else None
    if deleted is not None:
        cause = f"image {entry.image_name} (id {trashed}) was put into the trash; DeleteVolume goes on from there"
        mend = (steps.add_removal(look, entry.pool, trashed), steps.drop_entry(entry), drop)
        return [_of("deletion-unfinished", look, entry, cause, mend=mend, since=deleted.deleted_at)]
    renamed = names_of(entry.pool, [entry.image_id]).get(entry.image_id, "") if entry.image_id else ""
    if renamed:
        return [_of("image-renamed", look, entry, f"image {entry.image_name} is called {renamed} now")]
    return [_missing(look, entry, drop)]


def _missing(look: Look, entry: Entry, drop: Step) -> Finding:
    since = look.modified_at(entry.object_name, entry.pool) or 0.0
    mend: tuple[Step, ...] = (steps.drop_entry(entry), drop)
    source = look.image(entry.source, entry.pool) if entry.source else None
    taken = (
        [one for one in user_snapshots(entry.pool, source.header) if one.name == entry.image_name]
        if source is not None and source.header is not None
        else []
    )
    if source is not None and taken:
        cause = f"the snapshot is on {entry.source}, and there is no image {entry.image_name}"
        mend = (steps.remove_snapshot(entry.pool, source.image_id, entry.image_name), *mend)
        return _of("snapshot-unfinished", look, entry, cause, mend=mend, since=max(since, taken[0].created_at))
    cause = f"image {entry.image_name} is neither in the pool nor in the trash; " + (
        "its deletion was cut off, or it was removed by hand" if entry.image_id else "making it was cut off"
    )
    return _of("image-missing", look, entry, cause, mend=mend, since=since)


def _with_image(look: Look, entry: Entry, image: ImageState) -> list[Finding]:
    found = []
    if entry.image_id != image.image_id and not _is_told_with_its_source(look, entry, image):
        found.append(_other_id(look, entry, image))
    if entry.kind is SNAPSHOTS:
        found += _own_snapshot(look, entry, image)
    return found


def _is_told_with_its_source(look: Look, entry: Entry, image: ImageState) -> bool:
    # A clone that has no parent yet while its source has the snapshot for it: that is clone-unfinished.
    has_parent = image.header is not None and image.header.has_parent
    return not entry.image_id and not has_parent and image.name in look.hints.taken_for


def _other_id(look: Look, entry: Entry, image: ImageState) -> Finding:
    since = look.modified_at(entry.object_name, entry.pool) or 0.0
    if entry.image_id:
        cause = f"image {image.name} has the id {image.image_id}, the entry {entry.image_id}"
        mend = (steps.store_image_id(entry, image.image_id),)
        return _of("image-id-stale", look, entry, cause, mend=mend, since=since)
    # The id is what says that making it has come to its end: with it the beginnings of a clone would pass for whole.
    cause = (
        f"making image {image.name} (id {image.image_id}) has not come to its end; the call for it, or DeleteVolume, "
    )
    return _of("image-id-missing", look, entry, cause + "has to be repeated", since=since)


def _own_snapshot(look: Look, entry: Entry, image: ImageState) -> list[Finding]:
    header = image.header
    if header is None or any(one.name == image.name for one in user_snapshots(entry.pool, header)):
        return []
    cause = f"image {image.name} has no snapshot {image.name}, which restores are made of"
    # Without a parent it may be a clone that was cut off, and would restore zeros.
    mend = (steps.make_snapshot(entry.pool, image.name),) if header.has_parent else ()
    return [_of("snapshot-missing", look, entry, cause, mend=mend, since=header.created_at)]


def _is_named_elsewhere(look: Look, entry: Entry) -> bool:
    # ceph-csi v3.0 to v3.10 left the image pool's object empty where the journal is in another pool.
    for pool in look.journal_pools:
        found = look.entry(entry.kind, entry.uuid, pool)
        if found is not None and found.name:
            values = [look.value(one, entry.kind, found.name, pool) for one in look.directories(entry.kind)]
            return any(split_value(value or "")[1] == entry.uuid for value in values)
    return False


def _nameless(look: Look, entry: Entry) -> Finding:
    since = look.modified_at(entry.object_name) or 0.0
    image = None if entry.kind is GROUPS else look.image_of_uuid(entry.kind, entry.uuid)
    if image is None:
        cause = "it has no keys, and nothing leads to it: making it was cut off"
        return _of("entry-without-name", look, entry, cause, mend=(steps.drop_entry(entry),), since=since)
    cause = f"image {image.name} is there; the keys may be in another pool (ceph-csi v3.0 to v3.10), or are lost"
    return _of("keys-lost", look, entry, cause, since=since)


def _unnamed(look: Look, entry: Entry, *, taken: list[str]) -> list[Finding]:
    since = look.modified_at(entry.object_name) or 0.0
    image = None if entry.kind is GROUPS else look.image(entry.image_name)
    if image is None or image.header is None:
        if entry.image_id and trashed_image(look.pool, entry.image_id) is not None:
            cause = f"image {entry.image_name} is in the trash, and the name is gone already"
            mend = (steps.add_removal(look, look.pool, entry.image_id), steps.drop_entry(entry))
            return [_of("deletion-unfinished", look, entry, cause, mend=mend, since=since)]
        cause = (
            f"no name leads to it ({entry.name!r} is {'another one' if taken else 'not there'}), and it has no image"
        )
        return [_of("entry-without-name", look, entry, cause, mend=(steps.drop_entry(entry),), since=since)]
    if taken:
        cause = f"{entry.name!r} leads to {', '.join(taken)}, and this one has image {entry.image_name} as well"
        return [_of("duplicate-volume", look, entry, cause, since=since)]
    return [_give_name_back(look, entry, since)]


def _give_name_back(look: Look, entry: Entry, since: float) -> Finding:
    directory = look.directory(entry.kind)
    cause = f"its name {entry.name!r} is not in {directory}, and its image {entry.image_name} is there"
    ours = look.directories(entry.kind) == {directory} and entry.journal_pool_id is None
    mend = (steps.claim_name(look.pool, directory, entry.kind, entry.name, entry.uuid),) if ours else ()
    return _of("volume-without-name", look, entry, cause, mend=mend, since=since)


def _of(name: str, look: Look, entry: Entry, cause: str, *, mend: tuple[Step, ...] = (), since: float = 0.0) -> Finding:
    objects = (entry.object_name, *([entry.image_name] if entry.kind is not GROUPS else []))
    # What ceph-csi v3.0 to v3.10 spread over two pools is left to a person.
    mend = () if entry.is_split else mend
    return Finding(kind=CLASSES[name], cause=cause, objects=objects, steps=mend, since=since, locks=look.locks(entry))
