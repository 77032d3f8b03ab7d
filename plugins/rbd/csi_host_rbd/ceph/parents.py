"""Which image a clone hangs on, read from the headers: one operation an image, where opening it takes 11 to 41."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from csi_host_rbd.ceph.class_calls import ask_image
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.encoding import Decoder, packed_u64
from csi_host_rbd.ceph.failures import ImageNotFound

_NO_POOL = -1
# librbd and the kernel open no longer chains.
MAX_DEPTH = 16

PoolAt = Callable[[int, str], Pool]


@dataclass(frozen=True, kw_only=True)
class Parent:
    """The snapshot that a clone is made of."""

    pool_id: int
    namespace: str
    image_id: str
    snapshot_id: int


def parent_of(pool: Pool, image_id: str) -> Parent | None:
    """Return what an image is a clone of, None when it stands alone; raises ImageNotFound. 1 operation."""
    parent = ask_image(pool, image_id, "parent_get", b"", lambda answer: answer.versioned(_parent))
    return None if parent.pool_id == _NO_POOL else parent


def has_parent(pool: Pool, image_id: str) -> bool:
    """Whether there is such an image, and it is a clone. 1 operation."""
    try:
        return parent_of(pool, image_id) is not None
    except ImageNotFound:
        return False


def ancestors(pool: Pool, image_id: str, pool_at: PoolAt) -> Iterator[Parent]:
    """Yield the parent, its parent and so on; images in the trash count, as the chain goes through them."""
    parent = parent_of(pool, image_id)
    while parent is not None:
        yield parent
        try:
            parent = parent_of(pool_at(parent.pool_id, parent.namespace), parent.image_id)
        except ImageNotFound:
            # It went from the trash a moment ago, as the last image that hung on it was flattened or removed.
            return


def depth_of(pool: Pool, image_id: str, pool_at: PoolAt) -> int:
    """Return how many images an image hangs on, one after the other. 1 operation each, and 1."""
    return sum(1 for _ in ancestors(pool, image_id, pool_at))


def is_attached(pool: Pool, image_id: str, pool_at: PoolAt) -> bool:
    """Whether a clone has a parent that knows of it: only then has making it come to its end. 2 operations.

    librbd makes the clone's image first, then writes its parent, then tells the parent. A clone that was cut off before
    the first reads as zeros; one that was cut off before the second loses its content when the snapshot is removed.
    """
    parent = parent_of(pool, image_id)
    if parent is None:
        return False
    children = children_of(pool_at(parent.pool_id, parent.namespace), parent)
    return (pool.pool_id, pool.namespace, image_id) in children


def children_of(pool: Pool, parent: Parent) -> list[tuple[int, str, str]]:
    """Return the clones that a snapshot knows of, each as pool id, namespace and image id. 1 operation.

    ``pool`` is the parent's. None when the parent's image is gone, too.
    """
    try:
        return ask_image(
            pool,
            parent.image_id,
            "children_list",
            packed_u64(parent.snapshot_id),
            lambda answer: [answer.versioned(_child) for _ in range(answer.u32())],
        )
    except ImageNotFound:
        return []


def _parent(answer: Decoder) -> Parent:
    return Parent(pool_id=answer.s64(), namespace=answer.text(), image_id=answer.text(), snapshot_id=answer.u64())


def _child(answer: Decoder) -> tuple[int, str, str]:
    pool_id, image_id, namespace = answer.s64(), answer.text(), answer.text()
    return pool_id, namespace, image_id
