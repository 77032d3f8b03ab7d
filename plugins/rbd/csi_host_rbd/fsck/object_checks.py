"""The objects that make up an image: its id by name, its place in the directory, its header, its object maps.

librbd makes them in this order and removes them in the reverse one, and puts an image into the trash before it takes
its names away: what is missing a partner for long was cut off.
"""

from csi_host_rbd.ceph.class_calls import HEADER_PREFIX
from csi_host_rbd.ceph.registries import in_trash, names_of
from csi_host_rbd.fsck import steps
from csi_host_rbd.fsck.classes import CLASSES
from csi_host_rbd.fsck.findings import Finding, Step
from csi_host_rbd.fsck.look import ID_OBJECT_PREFIX, Look
from csi_host_rbd.fsck.names import is_csi_like
from csi_host_rbd.fsck.records import ImageState

OBJECT_MAP_PREFIX = "rbd_object_map."


def examine_objects(look: Look, name: str) -> list[Finding]:
    """Look whether the objects by which an image is found agree; only of images that may be CSI's."""
    if not is_csi_like(name):
        return []
    image = look.image(name)
    if not image.image_id and image.id_object is None:
        return []
    since = look.modified_at(ID_OBJECT_PREFIX + name) or 0.0
    if image.header is None or in_trash(look.pool, [image.image_id]):
        where = "it has no header" if image.header is None else "it is in the trash already"
        mend = (steps.remove_remnants(look.pool, image),)
        return [_of_image("image-remnants", image, f"{where}: making or removing it was cut off", mend, since)]
    return _of_whole_image(look, image, since)


def _of_whole_image(look: Look, image: ImageState, since: float) -> list[Finding]:
    name, image_id = image.name, image.image_id
    if not image.id_object:
        mend = (steps.write_id_object(look.pool, name, image_id),) if image.id_object is None else ()
        return [_of_image("id-object-missing", image, f"the directory has it as {image_id}", mend, since)]
    if not image.listed_id:
        other = names_of(look.pool, [image_id]).get(image_id, "")
        if other:
            return [_of_image("image-names-mismatch", image, f"image {image_id} is listed as {other}", (), since)]
        return [
            _of_image(
                "image-not-listed",
                image,
                f"its id is {image_id}",
                (steps.list_image(look.pool, name, image_id),),
                since,
            )
        ]
    if image.listed_id != image.id_object:
        cause = f"its object says {image.id_object}, the directory {image.listed_id}"
        return [_of_image("image-names-mismatch", image, cause, (), since)]
    return []


def examine_header(look: Look, image_id: str) -> list[Finding]:
    """Look whether a header belongs to an image that can be found."""
    header = look.header(image_id)
    if header is None or names_of(look.pool, [image_id]) or in_trash(look.pool, [image_id]):
        return []
    name = look.hints.named_only_by_object.get(image_id, "")
    if name and look.image(name).image_id == image_id:
        return []
    cause = f"an image of {header.size_bytes} bytes is neither in the directory nor in the trash"
    object_name = HEADER_PREFIX + image_id
    since = max(look.modified_at(object_name) or 0.0, header.created_at)
    return [_of_object("orphan-header", object_name, cause, (steps.put_into_trash(look.pool, image_id),), since)]


def examine_object_map(look: Look, object_name: str) -> list[Finding]:
    """Look whether an object map belongs to an image."""
    since = look.modified_at(object_name)
    image_id = image_of_object_map(object_name)
    if since is None or look.modified_at(HEADER_PREFIX + image_id) is not None:
        return []
    mend = (steps.remove_object(look.pool, object_name),)
    return [_of_object("orphan-object-map", object_name, f"there is no image with the id {image_id}", mend, since)]


def image_of_object_map(object_name: str) -> str:
    """Return the id of the image, with or without a snapshot's number behind it."""
    return object_name.removeprefix(OBJECT_MAP_PREFIX).partition(".")[0]


def _of_image(name: str, image: ImageState, cause: str, mend: tuple[Step, ...], since: float) -> Finding:
    return Finding(kind=CLASSES[name], cause=cause, objects=(image.name,), steps=mend, since=since)


def _of_object(name: str, object_name: str, cause: str, mend: tuple[Step, ...], since: float) -> Finding:
    return Finding(kind=CLASSES[name], cause=cause, objects=(object_name,), steps=mend, since=since)
