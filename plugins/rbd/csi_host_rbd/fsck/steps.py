"""The steps of mending: each with what it rests on checked in the same operation, and with the same by hand."""

import shlex
import uuid as uuids
from contextlib import suppress

from csi_host.errors import FailedPrecondition
from csi_host_rbd.ceph import groups, image_names, mending, omap, tasks, trash
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.failures import ImageNotFound, KeyMismatch, ObjectExists, ObjectNotFound
from csi_host_rbd.ceph.image import open_image
from csi_host_rbd.ceph.leases import Lease
from csi_host_rbd.ceph.lock_class import LockType
from csi_host_rbd.ceph.locks import LeasedLock
from csi_host_rbd.ceph.parents import Parent
from csi_host_rbd.ceph.registries import DIRECTORY
from csi_host_rbd.fsck.findings import Step
from csi_host_rbd.fsck.look import ID_OBJECT_PREFIX, Look
from csi_host_rbd.fsck.records import Entry, ImageState
from csi_host_rbd.reservations import Kind

ORPHAN_PREFIX = "csi-host-orphan-"
_LEASE_SECONDS = 30.0
_KEPT_SECONDS = 7 * 24 * 3600


class ImageInUse(FailedPrecondition):
    """Somebody has the image open."""


def rados(pool: Pool, *words: str) -> str:
    """Return a command line of ``rados``."""
    return shlex.join(["rados", *_place(pool), *words])


def rbd(pool: Pool, *words: str) -> str:
    """Return a command line of ``rbd``."""
    return shlex.join(["rbd", *_place(pool), *words])


def drop_name(pool: Pool, directory: str, kind: Kind, name: str, value: str) -> Step:
    """Remove a name while it leads to this value."""

    def do() -> None:
        with suppress(KeyMismatch, ObjectNotFound):
            omap.remove_key_if(pool, directory, kind.prefix + name, value)

    return Step(command=rados(pool, "rmomapkey", directory, kind.prefix + name), do=do)


def claim_name(pool: Pool, directory: str, kind: Kind, name: str, value: str) -> Step:
    """Write a name that is not there."""
    return Step(
        command=rados(pool, "setomapval", directory, kind.prefix + name, value),
        do=lambda: omap.claim_key(pool, directory, kind.prefix + name, value),
    )


def drop_entry(entry: Entry) -> Step:
    """Remove an object of the journal, unless an image's id was written since."""

    def do() -> None:
        expected = {"csi.imageid": entry.image_id}
        if not entry.name:
            expected |= {entry.kind.name_key: "", "csi.imagename": ""}
        with suppress(ObjectNotFound):
            mending.remove_object_if(entry.pool, entry.object_name, expected)

    return Step(command=rados(entry.pool, "rm", entry.object_name), do=do)


def block_entry(entry: Entry) -> Step:
    """Make an empty object where there is none, so that nobody else makes it; raises ObjectExists."""
    return Step(
        command=rados(entry.pool, "create", entry.object_name),
        do=lambda: omap.create_object(entry.pool, entry.object_name, {}),
    )


def restore_entry(pool: Pool, kind: Kind, uuid: str, values: dict[str, str]) -> Step:
    """Write the keys of an object that has lost them; it is made when it is missing."""
    object_name = kind.prefix + uuid

    def do() -> None:
        try:
            omap.create_object(pool, object_name, values)
        except ObjectExists:
            mending.change_keys_if(pool, object_name, {kind.name_key: "", "csi.imagename": ""}, values)

    lines = [rados(pool, "setomapval", object_name, key, value) for key, value in values.items()]
    return Step(command="; ".join(lines), do=do)


def store_image_id(entry: Entry, image_id: str) -> Step:
    """Write an image's id while the entry has the one that was read."""
    return Step(
        command=rados(entry.pool, "setomapval", entry.object_name, "csi.imageid", image_id),
        do=lambda: mending.change_keys_if(
            entry.pool, entry.object_name, {"csi.imageid": entry.image_id}, {"csi.imageid": image_id}
        ),
    )


def trash_image(look: Look, name: str, image_id: str) -> tuple[Step, ...]:
    """Put an image that nobody has open into the trash, and have the manager remove it."""
    pool = look.pool

    def move() -> None:
        with open_image(pool, name=name, read_only=True) as image:
            watchers = image.watchers()
        if watchers:
            raise ImageInUse(f"rbd {pool.spec(name)} is open at {', '.join(map(str, watchers))}")
        trash.trash_move(pool, name)

    return Step(command=rbd(pool, "trash", "mv", name), do=move), add_removal(look, pool, image_id)


def finish_move(look: Look, name: str, image_id: str) -> tuple[Step, ...]:
    """Bring an image's move to the trash to its end, and have the manager remove it, by a task that has not failed."""
    pool = look.pool
    move = Step(command=rbd(pool, "trash", "mv", name), do=lambda: trash.trash_move(pool, name))
    failing = (_cancel(look, task.task_id) for task in look.tasks() if task.image_id == image_id)
    return move, *failing, add_removal(look, pool, image_id)


def _cancel(look: Look, task_id: str) -> Step:
    def cancel() -> None:
        tasks.cancel(look.connection, task_id, timeout=look.manager_timeout)
        look.task_list.forget()

    return Step(command=shlex.join(["ceph", "rbd", "task", "cancel", task_id]), do=cancel)


def add_removal(look: Look, pool: Pool, image_id: str) -> Step:
    """Have the manager remove an image from the trash."""
    return Step(
        command=shlex.join(["ceph", "rbd", "task", "add", "trash", "remove", pool.spec(image_id)]),
        do=lambda: tasks.remove_trashed(look.connection, pool, image_id, timeout=look.manager_timeout),
    )


def remove_snapshot(pool: Pool, image_id: str, snapshot: str) -> Step:
    """Remove a snapshot; librbd keeps what a clone needs of it."""

    def do() -> None:
        with suppress(ImageNotFound), open_image(pool, image_id=image_id) as image:
            image.remove_snapshot(snapshot)

    return Step(command=rbd(pool, "snap", "rm", "--snap", snapshot, "--image-id", image_id), do=do)


def make_snapshot(pool: Pool, image_name: str) -> Step:
    """Take the snapshot of a snapshot's image that restores are made of."""

    def do() -> None:
        with open_image(pool, name=image_name) as image:
            image.create_snapshot(image_name)

    return Step(command=rbd(pool, "snap", "create", f"{image_name}@{image_name}"), do=do)


def attach_child(look: Look, parent_pool: Pool, parent: Parent, image_id: str) -> Step:
    """Tell a parent of its clone."""
    return Step(
        command="csi-host rbd fsck --repair --only child-not-registered",
        do=lambda: mending.attach_child(parent_pool, parent, look.pool, image_id),
    )


def remove_remnants(pool: Pool, image: ImageState) -> Step:
    """Remove the names of an image that is not there, or is in the trash."""
    lines = [] if image.id_object is None else [rados(pool, "rm", ID_OBJECT_PREFIX + image.name)]
    if image.listed_id:
        keys = (f"name_{image.name}", f"id_{image.listed_id}")
        lines += [rados(pool, "rmomapkey", DIRECTORY, key) for key in keys]
    return Step(command="; ".join(lines), do=lambda: image_names.remove_remnants(pool, image.name))


def list_image(pool: Pool, name: str, image_id: str) -> Step:
    """Add an image to the directory."""
    return Step(
        command="csi-host rbd fsck --repair --only image-not-listed",
        do=lambda: mending.list_image(pool, name, image_id),
    )


def write_id_object(pool: Pool, name: str, image_id: str) -> Step:
    """Make the object by which an image is opened."""
    return Step(
        command="csi-host rbd fsck --repair --only id-object-missing",
        do=lambda: mending.write_id_object(pool, name, image_id),
    )


def put_into_trash(pool: Pool, image_id: str) -> Step:
    """List a nameless image in the trash, where it is kept for a week at least."""
    return Step(
        command="csi-host rbd fsck --repair --only orphan-header",
        do=lambda: mending.put_into_trash(pool, image_id, ORPHAN_PREFIX + image_id, kept_seconds=_KEPT_SECONDS),
    )


def remove_group(pool: Pool, name: str) -> Step:
    """Remove a group that has neither images nor snapshots."""
    return Step(command=rbd(pool, "group", "rm", name), do=lambda: groups.remove_group(pool, name))


def remove_object(pool: Pool, name: str) -> Step:
    """Remove an object that nothing depends on."""
    return Step(command=rados(pool, "rm", name), do=lambda: omap.remove_object(pool, name))


def free_lock(pool: Pool, object_name: str) -> Step:
    """Take a lock as a controller does, which shuts a dead holder's client out first, and give it back."""

    def do() -> None:
        lock = LeasedLock(
            pool=pool,
            object_name=object_name,
            lock_type=LockType.EXCLUSIVE,
            cookie=uuids.uuid4().hex,
            description="csi-host rbd fsck",
            lease=Lease(what=object_name, seconds=_LEASE_SECONDS),
        )
        lock.acquire()
        lock.release()

    return Step(command="csi-host rbd fsck --repair --only abandoned-lock", do=do)


def _place(pool: Pool) -> list[str]:
    return ["--pool", pool.name, *(["--namespace", pool.namespace] if pool.namespace else [])]
