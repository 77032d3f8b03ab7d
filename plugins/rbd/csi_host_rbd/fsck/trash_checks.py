"""The trash, and the manager's tasks that empty it."""

import errno
import time
from collections.abc import Sequence

from csi_host_rbd.ceph.headers import HeaderSnapshot, all_snapshots
from csi_host_rbd.ceph.registries import TrashedImage, trashed_image
from csi_host_rbd.fsck import steps
from csi_host_rbd.fsck.classes import CLASSES
from csi_host_rbd.fsck.findings import Finding
from csi_host_rbd.fsck.look import Look
from csi_host_rbd.fsck.names import DEFAULT_PREFIXES, TEMPORARY_SUFFIX, is_csi_like, uuid_at_end

_NAMED = 5
# How the manager says that an image was not removed because of snapshots: those that clones hung on go with the clones.
_HAD_SNAPSHOTS = f"[errno {errno.ENOTEMPTY}]"


def examine_trashed(look: Look, image_id: str) -> list[Finding]:
    """Look whether a deleted image is removed by the manager; one that is kept on purpose is left alone."""
    image = trashed_image(look.pool, image_id)
    if image is None or not is_csi_like(image.name) or image.kept_until > max(time.time(), image.deleted_at):
        return []
    if look.has_entry(uuid_at_end(image.name.removesuffix(TEMPORARY_SUFFIX))):
        # Its deletion has not come to its end; that is told of with the entry.
        return []
    if image.is_moving:
        return [_stuck(look, image)]
    if any(task.image_id == image_id for task in look.tasks()):
        return []
    return [
        Finding(
            kind=CLASSES["trash-without-task"],
            cause=f"image {image.name} was deleted, and the manager has no task to remove it",
            objects=(f"{image.name} ({image_id})",),
            steps=(steps.add_removal(look, look.pool, image_id),),
            since=image.deleted_at,
            # Other programs' images may end in a uuid as well, and may be in the trash to be restored.
            removes_data=not image.name.startswith(DEFAULT_PREFIXES),
        )
    ]


def _stuck(look: Look, image: TrashedImage) -> Finding:
    return Finding(
        kind=CLASSES["trash-move-unfinished"],
        cause=f"moving image {image.name} to the trash was cut off, and librbd does not remove it before that ends",
        objects=(f"{image.name} ({image.image_id})",),
        steps=steps.finish_move(look, image.name, image.image_id),
        since=image.deleted_at,
        removes_data=not image.name.startswith(DEFAULT_PREFIXES),
    )


def examine_task(look: Look, task_id: str) -> list[Finding]:
    """Look whether a task fails, and what makes it fail; one that waits for clones to go has only to wait."""
    task = next((one for one in look.tasks() if one.task_id == task_id), None)
    if task is None or task.retries < 1:
        return []
    header = look.header(task.image_id) if task.image_id else None
    snapshots = all_snapshots(look.pool, header) if header is not None else []
    if task.image_id and (image := trashed_image(look.pool, task.image_id)) is not None and image.is_moving:
        # That is told of with the image.
        return []
    if all(one.is_trashed for one in snapshots) and (snapshots or _HAD_SNAPSHOTS in task.reason):
        return []
    what = task.image_name or task.image_id
    cause = f"{task.action} of {what} has failed {task.retries} times: {task.reason}{_why(snapshots)}"
    return [Finding(kind=CLASSES["task-failing"], cause=cause, objects=(task_id, what))]


def _why(snapshots: Sequence[HeaderSnapshot]) -> str:
    in_the_way = [one.name for one in snapshots if not one.is_trashed]
    if not in_the_way:
        return ""
    return f"; it has the snapshots {', '.join(in_the_way[:_NAMED])}, which somebody has to remove"
