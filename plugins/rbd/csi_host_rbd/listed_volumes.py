"""Volumes as lists and single looks show them: their handle, size and condition.

What a StorageClass said of a volume is kept with the caller alone, so there is no volume context here. Watchers have
addresses, not the ids that the CO knows its nodes by, so nothing is said of published nodes either.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from csi_host.errors import CsiError
from csi_host.request import remaining_seconds
from csi_host_rbd.backend import Backend, Cluster
from csi_host_rbd.ceph.failures import BackendTimeout, BackendUnavailable
from csi_host_rbd.ceph.helpers import HelperThreads
from csi_host_rbd.ceph.usage import PoolUsage
from csi_host_rbd.conditions import Condition, Sight, look_at
from csi_host_rbd.errors import VolumeNotFound
from csi_host_rbd.listing import Listing, Page
from csi_host_rbd.places import Places
from csi_host_rbd.pool_usage import PoolFigures
from csi_host_rbd.reservations import Reservation
from csi_host_rbd.volume_id import VolumeId

log = logging.getLogger(__name__)

# How long a look at one volume may take, and how much of the time that the caller gives.
_SECONDS, _SHARE = 5.0, 0.8
# Looks that hang; beyond these a look fails at once.
_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class SeenVolume:
    """A volume and its condition; ``size_bytes`` is 0 where it is not known."""

    volume_id: str
    size_bytes: int
    condition: Condition


class SeenVolumes:
    """The volumes of all clusters."""

    def __init__(self, *, backend: Backend, places: Places, listing: Listing, figures: PoolFigures) -> None:
        self._backend = backend
        self._places = places
        self._listing = listing
        self._figures = figures
        self._threads = HelperThreads(purpose="volume conditions", limit=_THREADS)

    def page(self, *, starting_token: str, max_entries: int) -> Page[SeenVolume]:
        """Return a page of volumes; raises PageTokenInvalid, NoControllerSecret."""
        return self._listing.page(self._look, starting_token=starting_token, max_entries=max_entries)

    def get(self, handle: str) -> SeenVolume:
        """Return what is seen of a volume; raises VolumeNotFound, NoControllerSecret. 4 operations.

        Where Ceph does not answer within a few seconds that is the volume's condition.
        """
        step = f"looking at volume {handle}"
        left = remaining_seconds()
        seconds = _SECONDS if left is None else min(_SECONDS, _SHARE * left)
        try:
            return self._threads.call(step, lambda: self._get(handle), timeout=seconds)
        except (BackendTimeout, BackendUnavailable) as reason:
            hung = Condition.of([f"Ceph does not answer, so what is done with the volume may hang: {reason}"])
            return SeenVolume(volume_id=handle, size_bytes=0, condition=hung)

    def expect(self, handle: str, secrets: Mapping[str, str]) -> None:
        """Raise VolumeNotFound when the journal has no such volume; ask nobody when there is no user to ask as."""
        if secrets or self._backend.controller_secret.is_configured:
            with self._places.volume(handle, secrets):
                return

    def _get(self, handle: str) -> SeenVolume:
        with self._places.volume(handle, None) as (place, reservation):
            seen = self._look(place.cluster, [reservation])
        if not seen:
            raise VolumeNotFound(f"volume_id: {handle} is only just being made: it has no image yet")
        # The CO's own word for it: a volume of another site, or one that was migrated, has no other.
        return replace(seen[0][1], volume_id=handle)

    def _look(self, cluster: Cluster, reservations: Sequence[Reservation]) -> list[tuple[Reservation, SeenVolume]]:
        sights = look_at(reservations, self._usage(cluster))
        return [(sight.reservation, _seen(cluster, sight)) for sight in sights]

    def _usage(self, cluster: Cluster) -> Mapping[int, PoolUsage]:
        try:
            return self._figures.of(cluster)
        except CsiError as reason:
            # The list is worth having without it.
            log.warning(f"how full the pools of cluster {cluster.config.cluster_id} are is not known: {reason}")
            return {}


def _seen(cluster: Cluster, sight: Sight) -> SeenVolume:
    return SeenVolume(
        volume_id=_handle(cluster, sight.reservation), size_bytes=sight.size_bytes, condition=sight.condition
    )


def _handle(cluster: Cluster, reservation: Reservation) -> str:
    if not reservation.uuid:
        return ""
    pool_id = reservation.pool.pool_id
    return str(VolumeId(cluster_id=cluster.config.cluster_id, pool_id=pool_id, uuid=reservation.uuid))
