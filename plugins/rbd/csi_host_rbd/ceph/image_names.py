"""The objects by which an image's name leads to the image, and what is left of them when it is cut off."""

from csi_host_rbd.ceph.bindings import rados
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.encoding import Decoder, EncodingInvalid, packed
from csi_host_rbd.ceph.failures import BackendUnavailable, ImageNotFound, ObjectNotFound, translated
from csi_host_rbd.ceph.trash import is_in_trash

_ID_OBJECT_PREFIX = "rbd_id."
_HEADER_PREFIX = "rbd_header."
_OBJECT_MAP_PREFIX = "rbd_object_map."
_DIRECTORY = "rbd_directory"
_NAME_KEY_PREFIX = "name_"
_ID_KEY_PREFIX = "id_"
_ID_BYTES_LIMIT = 4096


def read_image_id(pool: Pool, name: str) -> str:
    """Return an image's id without opening it; raises ImageNotFound. 1 operation.

    librbd keeps it in the object ``rbd_id.<name>``: a little-endian 32-bit length, then the text.
    """
    spec = pool.spec(name)
    try:
        with translated(f"reading the id of image {spec}"):
            content: bytes = pool.ioctx.read(_ID_OBJECT_PREFIX + name, _ID_BYTES_LIMIT)
    except ObjectNotFound as error:
        raise ImageNotFound(f"image {spec} does not exist") from error
    image_id = _unpacked(content)
    if not image_id:
        raise ImageNotFound(f"image {spec} has no id: its creation was cut off")
    return image_id


def image_exists(pool: Pool, name: str) -> bool:
    """Whether the pool has an image of that name, or the remnants of one. 1 operation."""
    return _has_object(pool, _ID_OBJECT_PREFIX + name, pool.spec(name))


def is_whole(pool: Pool, name: str) -> bool:
    """Whether a name leads to an image that has a header, whether or not it can be opened. 2 operations."""
    try:
        return _has_object(pool, _HEADER_PREFIX + read_image_id(pool, name), pool.spec(name))
    except ImageNotFound:
        return False


def name_of(pool: Pool, image_id: str) -> str:
    """Return the name of the image with an id, "" when none has it or it is in the trash. 1 operation."""
    return _directory_value(pool, _ID_KEY_PREFIX + image_id)


def remove_remnants(pool: Pool, name: str) -> None:
    """Remove what a cut-off creation or removal left of an image, so that its name is free. 2 operations for nothing.

    Such are the object with the id, and the name in the pool's directory, each without an image or with one that is
    in the trash already (librbd puts it there first). Raises BackendUnavailable when there is a whole image after all:
    that is never touched.
    """
    spec = pool.spec(name)
    try:
        image_id = read_image_id(pool, name)
    except ImageNotFound:
        image_id = ""
    listed_id = _directory_value(pool, _NAME_KEY_PREFIX + name)
    for one in {image_id, listed_id} - {""}:
        if not _has_object(pool, _HEADER_PREFIX + one, spec):
            _remove_object(pool, _OBJECT_MAP_PREFIX + one)
        elif not is_in_trash(pool, one):
            raise BackendUnavailable(f"image {spec} was to be cleared away as a remnant, but there is an image; retry")
    if listed_id:
        _forget_name(pool, name, listed_id)
    _remove_object(pool, _ID_OBJECT_PREFIX + name)


def _directory_value(pool: Pool, key: str) -> str:
    with translated(f"looking for {key} in {pool.name}/{_DIRECTORY}"), rados.ReadOpCtx() as operation:
        values, _ = pool.ioctx.get_omap_vals_by_keys(operation, (key,))
        try:
            pool.ioctx.operate_read_op(operation, _DIRECTORY)
        except rados.ObjectNotFound:
            return ""
        return next((_unpacked(value or b"") for _, value in values), "")


def _forget_name(pool: Pool, name: str, image_id: str) -> None:
    # The class compares both directions of the entry itself, so that no newer one is removed.
    entry = packed(name) + packed(image_id)
    step = f"removing image {pool.spec(name)} from the directory"
    try:
        with pool.writes.step(step), translated(step):
            pool.ioctx.execute(_DIRECTORY, "rbd", "dir_remove_image", entry)
    except ObjectNotFound:
        return


def _unpacked(content: bytes) -> str:
    try:
        return Decoder(content).text()
    except EncodingInvalid:
        return ""


def _has_object(pool: Pool, object_name: str, spec: str) -> bool:
    try:
        with translated(f"looking for image {spec}"):
            pool.ioctx.stat(object_name)
    except ObjectNotFound:
        return False
    return True


def _remove_object(pool: Pool, object_name: str) -> None:
    step = f"removing object {pool.name}/{object_name}"
    try:
        with pool.writes.step(step), translated(step):
            pool.ioctx.remove_object(object_name)
    except ObjectNotFound:
        return
