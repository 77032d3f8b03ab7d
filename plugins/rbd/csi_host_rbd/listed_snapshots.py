"""Snapshots as lists and single looks show them.

A snapshot counts once its image's id is stored, which is the last thing that making one writes. One whose image is
gone, or is in the trash, is being deleted or lost: nothing can be restored from it, and CSI has no place to say so, so
it is left out. One that hangs on too many others is not ready, as CreateSnapshot says it too.

A page costs one operation for each snapshot that is looked at, two more for each that is listed, and one for each image
of its chain.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from csi_host.errors import CsiError
from csi_host_rbd.backend import Cluster
from csi_host_rbd.ceph.glances import read_created_at, read_size, trashed_among
from csi_host_rbd.ceph.parents import depth_of
from csi_host_rbd.chains import Chains
from csi_host_rbd.errors import ClusterNotServed, SnapshotNotFound
from csi_host_rbd.image_naming import uuid_in
from csi_host_rbd.listing import Listing, Look, Page, Scope
from csi_host_rbd.parallel import in_parallel
from csi_host_rbd.places import Places
from csi_host_rbd.reservations import Reservation
from csi_host_rbd.snapshot import Snapshot
from csi_host_rbd.volume_id import InvalidVolumeId, VolumeId

log = logging.getLogger(__name__)

NOTHING: Page[Snapshot] = Page(entries=(), next_token="")


class SeenSnapshots:
    """The snapshots of all clusters."""

    def __init__(self, *, places: Places, chains: Chains, listing: Listing) -> None:
        self._places = places
        self._chains = chains
        self._listing = listing

    def page(
        self, *, starting_token: str, max_entries: int, source_volume_id: str, secrets: Mapping[str, str]
    ) -> Page[Snapshot]:
        """Return a page of snapshots, those of one source if that is given; raises PageTokenInvalid."""
        look: Look[Snapshot] = self._look
        scope = None
        if source_volume_id:
            try:
                source = VolumeId.parse(source_volume_id)
            except InvalidVolumeId:
                return NOTHING
            # A snapshot is in its source's pool. The journal has no index by source: all names there are gone through.
            look, scope = partial(self._look_for, source), Scope(cluster_id=source.cluster_id, pool_id=source.pool_id)
        return self._listing.page(
            look, starting_token=starting_token, max_entries=max_entries, secrets=secrets, scope=scope
        )

    def find(self, snapshot_id: str, source_volume_id: str, secrets: Mapping[str, str]) -> Page[Snapshot]:
        """Return the page with the snapshot of a handle, an empty one when there is none, or none of that source."""
        try:
            found = self.get(snapshot_id, secrets)
        except (SnapshotNotFound, ClusterNotServed):
            return NOTHING
        is_wanted = source_volume_id in {"", found.source_volume_id}
        return Page(entries=[found], next_token="") if is_wanted else NOTHING

    def get(self, snapshot_id: str, secrets: Mapping[str, str]) -> Snapshot:
        """Return the snapshot of a handle; raises SnapshotNotFound. 4 operations."""
        with self._places.snapshot(snapshot_id, secrets) as (place, reservation):
            seen = self._look(place.cluster, [reservation])
        if not seen:
            raise SnapshotNotFound(f"snapshot_id: {snapshot_id} is no whole snapshot: it is being made or removed")
        # The CO's own word for it: a snapshot of another site has no other.
        return replace(seen[0][1], snapshot_id=snapshot_id)

    def _look_for(
        self, source: VolumeId, cluster: Cluster, reservations: Sequence[Reservation]
    ) -> list[tuple[Reservation, Snapshot]]:
        return self._look(cluster, [one for one in reservations if uuid_in(one.source) == source.uuid])

    def _look(self, cluster: Cluster, reservations: Sequence[Reservation]) -> list[tuple[Reservation, Snapshot]]:
        made = [one for one in reservations if one.source and one.image_id]
        pools = {one.pool.pool_id: one.pool for one in made}
        trashed = {
            pool_id: trashed_among(pool, [one.image_id for one in made if one.pool.pool_id == pool_id])
            for pool_id, pool in pools.items()
        }
        there = [one for one in made if one.image_id not in trashed[one.pool.pool_id]]
        seen = zip(there, in_parallel(partial(self._seen, cluster), there), strict=True)
        return [(reservation, snapshot) for reservation, snapshot in seen if snapshot is not None]

    def _seen(self, cluster: Cluster, reservation: Reservation) -> Snapshot | None:
        pool, image_id = reservation.pool, reservation.image_id
        try:
            return Snapshot(
                snapshot_id=_handle(cluster, reservation, reservation.uuid),
                source_volume_id=_handle(cluster, reservation, uuid_in(reservation.source)),
                size_bytes=read_size(pool, image_id),
                created_at=read_created_at(pool, image_id),
                is_ready=not self._chains.is_too_deep(depth_of(pool, image_id, cluster.pool_at) + 1),
                group_id=reservation.group_id,
            )
        except CsiError as reason:
            # One that cannot be read must not hide the others; a cluster that does not answer says nothing of any.
            if not reason.is_final:
                raise
            log.warning(f"snapshot {reservation.name} is left out: {reason}")
            return None


def _handle(cluster: Cluster, reservation: Reservation, uuid: str) -> str:
    if not uuid:
        return ""
    return str(VolumeId(cluster_id=cluster.config.cluster_id, pool_id=reservation.pool.pool_id, uuid=uuid))
