"""Locks as they lie on objects, whoever made them."""

from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.encoding import Decoder, packed, packed_struct
from csi_host_rbd.ceph.failures import ObjectNotFound, translated

_ATTRIBUTE_PREFIX = "lock."
_ANSWER_BYTES = 64 * 1024


def lock_names(pool: Pool, object_name: str) -> list[str]:
    """Return the names of the locks that an object has or had. 1 operation."""
    try:
        with translated(f"reading object {pool.name}/{object_name}"):
            names = [name for name, _ in pool.ioctx.get_xattrs(object_name)]
    except ObjectNotFound:
        return []
    return [name.removeprefix(_ATTRIBUTE_PREFIX) for name in names if name.startswith(_ATTRIBUTE_PREFIX)]


def owner_count(pool: Pool, object_name: str, lock_name: str) -> int:
    """Return how many clients hold a lock now; those whose lease has ended do not count. 1 operation."""
    try:
        with translated(f"asking object {pool.name}/{object_name} for its lock"):
            question = packed_struct(packed(lock_name))
            _, answer = pool.ioctx.execute(object_name, "lock", "get_info", question, _ANSWER_BYTES)
    except ObjectNotFound:
        return 0
    return Decoder(answer).versioned(lambda one: one.u32())
