"""Images taken away: into the trash, which takes the same time for every size, and out of it by the manager."""

import time
from collections.abc import Sequence
from contextlib import suppress

from csi_host_rbd.ceph import groups, image_names, trash
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.failures import ImageInGroup, ImageNotFound, ObjectNotFound
from csi_host_rbd.ceph.image import Image, Watcher, open_image
from csi_host_rbd.ceph.registries import trashed_image
from csi_host_rbd.ceph.tasks import remove_trashed
from csi_host_rbd.image_naming import TEMPORARY_SUFFIX
from csi_host_rbd.places import Place
from csi_host_rbd.reservations import Reservation

_PASSING_SECONDS = 3.0
_PASSING_PAUSE_SECONDS = 0.2


class Removal:
    """Removes images; ``manager_timeout`` is how many seconds the manager may take to accept a task."""

    def __init__(self, *, manager_timeout: float) -> None:
        self._manager_timeout = manager_timeout

    def remove_image(self, place: Place, pool: Pool, name: str, *, snapshots: Sequence[str] = ()) -> None:
        """Take away an image with these snapshots of it, or the remnants of one; fine when there is none.

        The trash is never emptied of an image that has snapshots, so they go first.
        """
        if not image_names.image_exists(pool, name):
            return
        try:
            image_id = image_names.read_image_id(pool, name)
            if snapshots:
                # One whose parent has gone before it was attached cannot be opened, and has none yet.
                with suppress(ImageNotFound):
                    self.remove_snapshots(pool, name, snapshots)
            self.trash(place, pool, name, image_id)
        except ImageNotFound:
            image_names.remove_remnants(pool, name)

    def remove_intermediate(self, place: Place, pool: Pool, name: str) -> None:
        """Take away the image that ceph-csi puts between a clone called ``name`` and its source; fine without one."""
        self.remove_image(place, pool, name + TEMPORARY_SUFFIX, snapshots=[name])

    def remove_snapshots(self, pool: Pool, name: str, snapshots: Sequence[str]) -> None:
        """Remove these snapshots of an image, as far as it has them."""
        with open_image(pool, name=name) as image:
            for snapshot in set(snapshots).intersection(image.user_snapshots()):
                image.remove_snapshot(snapshot)

    def trash(self, place: Place, pool: Pool, name: str, image_id: str) -> None:
        """Put an image into the trash and have the manager empty it."""
        try:
            trash.trash_move(pool, name)
        except ImageInGroup:
            # One that was left behind has no say in it; whoever is at work on one holds its volumes.
            with open_image(pool, image_id=image_id, read_only=True) as image:
                group = image.group()
            if not groups.is_temporary(group):
                raise
            groups.remove_group(pool, group)
            trash.trash_move(pool, name)
        self._add_removal(place, pool, image_id)

    def finish_in_trash(self, place: Place, reservation: Reservation) -> None:
        """Go on with a removal that stopped after the image had gone to the trash."""
        pool, name = reservation.pool, reservation.image_name
        self.remove_intermediate(place, pool, name)
        known = reservation.image_id
        trashed = [known] if known and trash.is_in_trash(pool, known) else trash.find_in_trash(pool, name)
        for image_id in trashed:
            _finish_move(pool, name, image_id)
        image_names.remove_remnants(pool, name)
        for image_id in trashed:
            self._add_removal(place, pool, image_id)

    def finish_trashed(self, place: Place, pool: Pool, name: str) -> None:
        """Go on with the removal of images that had this name: the manager is asked to empty the trash of each."""
        for image_id in trash.find_in_trash(pool, name):
            _finish_move(pool, name, image_id)
            self._add_removal(place, pool, image_id)

    def _add_removal(self, place: Place, pool: Pool, image_id: str) -> None:
        remove_trashed(place.cluster.connection, pool, image_id, timeout=self._manager_timeout)


def _finish_move(pool: Pool, name: str, image_id: str) -> None:
    """Bring a move to the trash to its end that was cut off within librbd: before that the image is not removed.

    librbd finds such an image in the trash by the name it had. 1 operation when there is nothing to do.
    """
    trashed = trashed_image(pool, image_id)
    if trashed is not None and trashed.is_moving:
        with suppress(ImageNotFound, ObjectNotFound):
            trash.trash_move(pool, name)


def lasting_watchers(image: Image, *, allowed: int = 0) -> list[Watcher]:
    """Return who has an image open and keeps it open, none when they are no more than ``allowed``.

    Whoever removes a clone or fills it has the source open for a moment: the manager, or another call here.
    """
    deadline = time.monotonic() + _PASSING_SECONDS
    while len(watchers := image.watchers()) > allowed:
        if time.monotonic() > deadline:
            return watchers
        time.sleep(_PASSING_PAUSE_SECONDS)
    return []
