"""What an image's header says of its snapshots, read without opening the image."""

from csi_host_rbd.ceph.class_calls import ask_image
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.encoding import Decoder, packed_u64


def snapshot_ids(pool: Pool, image_id: str) -> list[int]:
    """Return the ids of all snapshots, oldest first, whoever they are for; raises ImageNotFound. 1 operation."""
    return sorted(ask_image(pool, image_id, "get_snapcontext", b"", _ids))


def flags_at(pool: Pool, image_id: str, snapshot_id: int) -> int:
    """Return librbd's flags at a snapshot: 1 the object map is invalid, 2 fast-diff is. 1 operation.

    Raises ImageNotFound, also for a snapshot that there is not.
    """
    return ask_image(pool, image_id, "get_flags", packed_u64(snapshot_id), Decoder.u64)


def overlap_at(pool: Pool, image_id: str, snapshot_id: int) -> int:
    """Return how many bytes of the image's parent show through at a snapshot; 0 without a parent. 1 operation."""
    return ask_image(pool, image_id, "parent_overlap_get", packed_u64(snapshot_id), _overlap)


def _overlap(answer: Decoder) -> int:
    return answer.u64() if answer.flag() else 0


def _ids(answer: Decoder) -> list[int]:
    answer.u64()  # the newest id there ever was
    return [answer.u64() for _ in range(answer.u32())]
