"""Work that the cluster's manager does in the background, one task at a time.

A manager that does not know the commands, or refuses them to this user, is not needed: the work is then done here.
One that does not answer is: BackendTimeout or BackendUnavailable, and the work is asked for again later.
"""

import logging
from contextlib import suppress

from csi_host.errors import NotFound, PermissionDenied
from csi_host_rbd.ceph import image_names, parents, trash
from csi_host_rbd.ceph.cluster import Connection, Pool
from csi_host_rbd.ceph.failures import ArgumentRefused, ImageNotFound
from csi_host_rbd.ceph.image import open_image

log = logging.getLogger(__name__)


def remove_trashed(connection: Connection, pool: Pool, image_id: str, *, timeout: float) -> None:
    """Have an image removed from the trash; asking again for the same image is fine, and for one that is gone."""
    spec = pool.spec(image_id)
    command = {"prefix": "rbd task add trash remove", "image_id_spec": spec, "format": "json"}
    try:
        _tell(connection, command, spec, timeout)
    except (ArgumentRefused, PermissionDenied) as reason:
        log.info(f"removing {spec} without the manager: {reason}")
        trash.remove_from_trash(pool, image_id)
    except NotFound:
        return


def flatten(connection: Connection, pool: Pool, name: str, *, timeout: float) -> None:
    """Have a clone filled with its parent's data, so that it stands alone; fine for one that does, or is gone.

    Asking again while it goes on is fine too. Without the manager it is done here, object by object, within the time
    of one call of librbd: BackendTimeout when that is not enough, and the next call goes on.
    """
    spec = pool.spec(name)
    command = {"prefix": "rbd task add flatten", "image_spec": spec, "format": "json"}
    try:
        _tell(connection, command, spec, timeout)
    except (ArgumentRefused, PermissionDenied) as reason:
        if _is_clone(pool, name):
            log.info(f"flattening {spec} without the manager: {reason}")
            with open_image(pool, name=name) as image:
                image.flatten()
    except NotFound:
        return


def cancel(connection: Connection, task_id: str, *, timeout: float) -> None:
    """Have the manager forget a task; fine when it has none of that id."""
    with suppress(NotFound):
        _tell(connection, {"prefix": "rbd task cancel", "task_id": task_id, "format": "json"}, task_id, timeout)


def _tell(connection: Connection, command: dict[str, str], what: str, timeout: float) -> None:
    with connection.writes.step(f"{command['prefix']} {what}"):
        connection.manager_command(command, timeout=timeout)


def _is_clone(pool: Pool, name: str) -> bool:
    try:
        return parents.has_parent(pool, image_names.read_image_id(pool, name))
    except ImageNotFound:
        return False
