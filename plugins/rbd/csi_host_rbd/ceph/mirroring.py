"""How the copying of an image to other clusters goes on, as its mirror daemons say it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from csi_host_rbd.ceph.bindings import rbd
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.failures import translated


@dataclass(frozen=True, kw_only=True)
class SiteStatus:
    """What a site's mirror daemon says of an image; ``is_up`` is whether it says so still."""

    is_up: bool
    is_replaying: bool
    has_failed: bool
    description: str


@dataclass(frozen=True, kw_only=True)
class MirrorStatus:
    """An image's part in mirroring: whether this cluster's is the one that is written, here and in the other sites."""

    is_primary: bool
    local: SiteStatus
    remote: tuple[SiteStatus, ...]


def read_mirror_status(pool: Pool, image_id: str) -> MirrorStatus:
    """Return the status of a mirrored image; raises ImageNotFound. About 15 operations."""
    step = f"reading the status of mirroring of image {pool.spec(f'id {image_id}')}"

    def read() -> MirrorStatus:
        with rbd.Image(pool.ioctx, image_id=image_id, read_only=True) as image:
            information, status = image.mirror_image_get_info(), image.mirror_image_get_status()
        return MirrorStatus(
            is_primary=bool(information["primary"]),
            local=_site(status),
            remote=tuple(_site(one) for one in status.get("remote_statuses", ())),
        )

    with translated(step):
        return pool.image_threads.call(step, read, timeout=pool.call_seconds)


def _site(status: Mapping[str, Any]) -> SiteStatus:
    return SiteStatus(
        is_up=bool(status["up"]),
        is_replaying=status["state"] == rbd.MIRROR_IMAGE_STATUS_STATE_REPLAYING,
        has_failed=status["state"] == rbd.MIRROR_IMAGE_STATUS_STATE_ERROR,
        description=str(status["description"]),
    )
