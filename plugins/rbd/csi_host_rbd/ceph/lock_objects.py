"""The objects that locks lie on."""

from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.failures import ObjectNotFound, translated

_ATTRIBUTE_PREFIX = "lock."


def lock_names(pool: Pool, object_name: str) -> list[str]:
    """Return the names of the locks that an object has or had. 1 operation."""
    try:
        with translated(f"reading object {pool.name}/{object_name}"):
            names = [name for name, _ in pool.ioctx.get_xattrs(object_name)]
    except ObjectNotFound:
        return []
    return [name.removeprefix(_ATTRIBUTE_PREFIX) for name in names if name.startswith(_ATTRIBUTE_PREFIX)]
