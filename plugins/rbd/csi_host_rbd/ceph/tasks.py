"""Work that the cluster's manager does in the background."""

import logging

from csi_host.errors import NotFound, PermissionDenied
from csi_host_rbd.ceph import image
from csi_host_rbd.ceph.cluster import Connection, Pool
from csi_host_rbd.ceph.failures import ArgumentRefused

log = logging.getLogger(__name__)


def remove_trashed(connection: Connection, pool: Pool, image_id: str, *, timeout: float) -> None:
    """Have the manager remove an image from the trash; asking again for the same image is fine.

    A manager that does not know the command, or refuses it to this user, is not needed: the image is then removed
    here. One that does not answer is: raises BackendTimeout or BackendUnavailable, and the image stays in the trash.
    """
    spec = pool.spec(image_id)
    command = {"prefix": "rbd task add trash remove", "image_id_spec": spec, "format": "json"}
    try:
        connection.manager_command(command, timeout=timeout)
    except (ArgumentRefused, PermissionDenied) as reason:
        log.info(f"removing {spec} without the manager: {reason}")
        image.remove_from_trash(pool, image_id)
    except NotFound:
        return
