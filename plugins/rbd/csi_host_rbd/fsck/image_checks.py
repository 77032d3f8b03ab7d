"""Images whose names look like a volume's, and that nothing belongs to."""

from csi_host_rbd.ceph.headers import user_snapshots
from csi_host_rbd.ceph.registries import is_mirrored
from csi_host_rbd.fsck import steps
from csi_host_rbd.fsck.classes import CLASSES
from csi_host_rbd.fsck.findings import Finding, Step
from csi_host_rbd.fsck.look import Look
from csi_host_rbd.fsck.names import IN_TREE_PREFIX, uuid_at_end, volume_of_temporary
from csi_host_rbd.fsck.records import ImageState


def examine_image(look: Look, name: str) -> list[Finding]:
    """Look whether an image that ends in a uuid has an entry.

    The entry is written first and removed last, so an image without one is never a call at work. It may still be
    somebody's: a static volume, an image that a mirror keeps, or one of another program. Only a person knows.
    """
    uuid = uuid_at_end(name)
    image = look.image(name)
    if not uuid or name.startswith(IN_TREE_PREFIX) or image.header is None or look.has_entry(uuid):
        return []
    if is_mirrored(look.pool, image.image_id):
        return [
            _finding("image-without-entry", "it has no entry; it is mirrored, so its journal may be elsewhere", image)
        ]
    own = [one for one in user_snapshots(look.pool, image.header) if one.name == name]
    mend = tuple(steps.remove_snapshot(look.pool, image.image_id, one.name) for one in own)
    return [
        _finding(
            "image-without-entry",
            f"no object of the journal has the uuid {uuid}; make sure that no PersistentVolume names the image",
            image,
            mend=(*mend, *steps.trash_image(look, name, image.image_id)),
        )
    ]


def examine_temporary(look: Look, name: str) -> list[Finding]:
    """Look whether the image between a volume and its clone still has its clone."""
    volume = volume_of_temporary(name)
    image = look.image(name)
    if not volume or image.header is None or look.has_entry(uuid_at_end(volume)):
        return []
    if look.image(volume).header is not None or is_mirrored(look.pool, image.image_id):
        return []
    snapshots = user_snapshots(look.pool, image.header)
    mend = tuple(steps.remove_snapshot(look.pool, image.image_id, one.name) for one in snapshots)
    return [
        _finding(
            "temp-without-clone",
            f"there is neither an image {volume} nor an entry for it",
            image,
            mend=(*mend, *steps.trash_image(look, name, image.image_id)),
            # What is no clone (any more) was not made in between, whatever it is called.
            removes_data=not image.header.has_parent or any(one.name != volume for one in snapshots),
        )
    ]


def _finding(
    name: str, cause: str, image: ImageState, *, mend: tuple[Step, ...] = (), removes_data: bool = False
) -> Finding:
    since = 0.0 if image.header is None else image.header.created_at
    return Finding(
        kind=CLASSES[name], cause=cause, objects=(image.name,), steps=mend, since=since, removes_data=removes_data
    )
