"""Whether volumes are well, from what can be seen of their images.

Each cause is a sentence of its own; a volume may have several:

* the image is missing, or lies in the trash, from where somebody who still has it open keeps it from being removed;
* mirroring makes it a copy of another cluster's image, which nobody may write, or its mirroring has failed or stopped;
* its pool, or the one with its data, is full, over its quota, or close to being full.

Who has an image open is no cause by itself: that is what volumes are for. A question costs two operations for a whole
page and one for each image; only an image in the trash and one that is mirrored are opened, and only while some pool
of the cluster is in trouble is it asked in which one an image keeps its data.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from csi_host.errors import CsiError
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.failures import ImageNotFound
from csi_host_rbd.ceph.glances import mirrored_among, read_data_pool_id, read_size, trashed_among
from csi_host_rbd.ceph.image import open_image
from csi_host_rbd.ceph.image_names import read_image_id
from csi_host_rbd.ceph.mirroring import MirrorStatus, read_mirror_status
from csi_host_rbd.ceph.usage import PoolUsage
from csi_host_rbd.parallel import in_parallel
from csi_host_rbd.reservations import Reservation

_WELL = "the image is there and nothing is known to hinder its use"
# What a pool's flags mean to somebody who writes; the first one that is set is told.
_TROUBLES = {
    "full_quota": "has reached its quota: writes fail",
    "full": "is full: writes hang",
    "backfillfull": "is almost full",
    "nearfull": "is nearly full",
}
# A mirror daemon's own words may be long, and a whole page has to stay below 4 MiB.
_MOST_CHARACTERS = 800
_SPLIT_BRAIN = "split-brain"


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Whether something is wrong with a volume, and what."""

    is_abnormal: bool
    message: str

    @classmethod
    def of(cls, causes: Sequence[str]) -> Self:
        """Return the condition that causes make; without any all is well."""
        return cls(is_abnormal=bool(causes), message="; ".join(causes)[:_MOST_CHARACTERS] or _WELL)


@dataclass(frozen=True, kw_only=True)
class Sight:
    """What is seen of a volume's image; ``size_bytes`` is 0 where there is none."""

    reservation: Reservation
    size_bytes: int
    condition: Condition


@dataclass(frozen=True, kw_only=True)
class _Surroundings:
    """What is known of several images of one pool at once, by image id, and of the cluster's pools, by pool id."""

    trashed: frozenset[str]
    mirrored: frozenset[str]
    troubles: Mapping[int, str]

    @classmethod
    def of(cls, pool: Pool, reservations: Sequence[Reservation], usage: Mapping[int, PoolUsage]) -> Self:
        image_ids = [one.image_id for one in reservations if one.pool.pool_id == pool.pool_id]
        troubles = {pool_id: trouble for pool_id, one in usage.items() if (trouble := _trouble_of(one))}
        return cls(trashed=trashed_among(pool, image_ids), mirrored=mirrored_among(pool, image_ids), troubles=troubles)


def look_at(reservations: Sequence[Reservation], usage: Mapping[int, PoolUsage]) -> list[Sight]:
    """Return what is seen of the images; one whose volume is only just being made, with no id yet, is left out."""
    identified = [one for one in in_parallel(_identified, reservations) if one is not None]
    pools = {one.pool.pool_id: one.pool for one in identified}
    surroundings = {pool_id: _Surroundings.of(pool, identified, usage) for pool_id, pool in pools.items()}
    return in_parallel(lambda one: _look(one, surroundings[one.pool.pool_id]), identified)


def causes_in(status: MirrorStatus) -> Iterator[str]:
    """Yield what is wrong with an image's mirroring."""
    if not status.is_primary:
        yield "the image is a mirror's copy, which cannot be written before it is promoted"
        if not status.local.is_up:
            yield "no mirror daemon of this cluster brings the copy up to date"
    sites = (status.local, *status.remote)
    if any(_SPLIT_BRAIN in site.description for site in sites):
        yield "its copies in the mirrored clusters have parted (split-brain): one has to be resynced"
    else:
        yield from (f"mirroring has failed: {site.description}" for site in sites if site.has_failed)


def _identified(reservation: Reservation) -> Reservation | None:
    """Return the reservation with its image's id, None when it has neither an id nor an image."""
    if reservation.image_id:
        return reservation
    try:
        return replace(reservation, image_id=read_image_id(reservation.pool, reservation.image_name))
    except ImageNotFound:
        return None


def _look(reservation: Reservation, surroundings: _Surroundings) -> Sight:
    pool, image_id = reservation.pool, reservation.image_id
    try:
        size_bytes = _size_of(reservation)
        causes = [
            *(_causes_in_trash(pool, image_id) if image_id in surroundings.trashed else ()),
            *(causes_in(read_mirror_status(pool, image_id)) if image_id in surroundings.mirrored else ()),
            *_causes_in_pools(pool, image_id, surroundings.troubles),
        ]
    except ImageNotFound:
        size_bytes, causes = 0, [f"the image {pool.spec(reservation.image_name)} does not exist"]
    except CsiError as reason:
        # One image that cannot be read must not hide the others; a cluster that does not answer says nothing of any.
        if not reason.is_final:
            raise
        size_bytes, causes = 0, [f"the image cannot be read: {reason}"]
    return Sight(reservation=reservation, size_bytes=size_bytes, condition=Condition.of(causes))


def _size_of(reservation: Reservation) -> int:
    pool = reservation.pool
    try:
        return read_size(pool, reservation.image_id)
    except ImageNotFound:
        # ceph-csi keeps the id of an earlier image when it makes one anew under the same name.
        return read_size(pool, read_image_id(pool, reservation.image_name))


def _causes_in_trash(pool: Pool, image_id: str) -> Iterator[str]:
    with open_image(pool, image_id=image_id, read_only=True) as image:
        watchers = image.watchers()
    still = f", still open at {', '.join(map(str, watchers))}" if watchers else ""
    yield f"the image is in the trash{still}"


def _causes_in_pools(pool: Pool, image_id: str, troubles: Mapping[int, str]) -> Iterator[str]:
    if pool.pool_id in troubles:
        yield troubles[pool.pool_id]
    if troubles.keys() - {pool.pool_id}:
        data_pool_id = read_data_pool_id(pool, image_id)
        if data_pool_id is not None and data_pool_id in troubles:
            yield troubles[data_pool_id]


def _trouble_of(usage: PoolUsage) -> str:
    flag = next((flag for flag in _TROUBLES if flag in usage.flags), None)
    return f"the pool {usage.name} {_TROUBLES[flag]}" if flag else ""
