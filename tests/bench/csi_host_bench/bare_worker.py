"""The floor: what librbd itself takes for the steps that a driver cannot do without, with nothing around them."""

import json
import sys
from pathlib import Path
from typing import Any

from csi_host_rbd.ceph.bindings import rados, rbd
from csi_host_rbd.devcluster import DevCluster

from .callers import CallError
from .sizes import EXPANDED_BYTES, VOLUME_BYTES
from .worker import Functions, work

_PAGE_KEYS = 1000
# Of the length before the text in an image's id object.
_LENGTH_BYTES = 4


class BareImages:
    """Calls of librbd on the images of one pool."""

    def __init__(self, handle: Any, ioctx: Any, pool: str) -> None:
        self._handle = handle
        self._ioctx = ioctx
        self._pool = pool
        self._rbd = rbd.RBD()

    def functions(self) -> Functions:
        """Return what it can be told to do, by name."""
        return {
            "create": self.create,
            "expand": self.expand,
            "snapshot": self.snapshot,
            "restore": self.restore,
            "clone": self.clone,
            "delete": self.trash,
            "delete_with_task": self.trash_with_task,
            "remove": self.remove,
            "remove_snapshot": self.remove_snapshot,
            "empty_trash": self.empty_trash,
            "trash": self.trash_ids,
            "objects": self.objects,
        }

    def create(self, name: str) -> None:
        """Make an image with the features of the bench's StorageClass."""
        self._rbd.create(self._ioctx, name, VOLUME_BYTES, old_format=False, features=rbd.RBD_FEATURE_LAYERING)

    def expand(self, name: str) -> None:
        """Open an image and give it its bigger size."""
        with rbd.Image(self._ioctx, name) as image:
            image.resize(EXPANDED_BYTES)

    def snapshot(self, name: str) -> None:
        """Open an image and make the snapshot that ``restore`` clones."""
        with rbd.Image(self._ioctx, name) as image:
            image.create_snap("snapshot")

    def restore(self, name: str) -> None:
        """Clone the snapshot."""
        self._clone(name, "snapshot", f"{name}-restore")

    def clone(self, name: str) -> None:
        """Make a snapshot and clone it: less does not clone an image."""
        with rbd.Image(self._ioctx, name) as image:
            image.create_snap("clone")
        self._clone(name, "clone", f"{name}-clone")

    def trash(self, name: str) -> None:
        """Put an image into the trash."""
        self._rbd.trash_move(self._ioctx, name, 0)

    def trash_with_task(self, name: str) -> None:
        """Put an image into the trash and have the manager remove it, for which its id is needed."""
        image_id = self._ioctx.read(f"rbd_id.{name}")[_LENGTH_BYTES:].decode()
        self.trash(name)
        task = {"prefix": "rbd task add trash remove", "image_id_spec": f"{self._pool}/{image_id}"}
        code, _, message = self._handle.mgr_command(json.dumps(task), b"")
        if code != 0:
            raise CallError(f"manager {code}", message)

    def remove(self, name: str) -> None:
        """Remove an image here and now."""
        self._rbd.remove(self._ioctx, name)

    def remove_snapshot(self, name: str) -> None:
        """Remove the snapshots that were made of an image."""
        with rbd.Image(self._ioctx, name) as image:
            for snapshot in list(image.list_snaps()):
                image.remove_snap(snapshot["name"])

    def empty_trash(self, _: object) -> None:
        """Remove what this process put into the trash."""
        for entry in list(self._rbd.trash_list(self._ioctx)):
            if entry["name"].startswith("bare-"):
                self._rbd.trash_remove(self._ioctx, entry["id"], force=True)

    def trash_ids(self, _: object) -> list[str]:
        """Return the ids of the images in the trash."""
        return [entry["id"] for entry in self._rbd.trash_list(self._ioctx)]

    def objects(self, _: object) -> list[str]:
        """Return the names of all objects of the pool, each followed by those of its keys."""
        names = sorted(found.key for found in self._ioctx.list_objects())
        return [text for name in names for text in (name, *(f"{name}: {key}" for key in self._keys(name)))]

    def _keys(self, name: str) -> list[str]:
        keys: list[str] = []
        while page := self._page_of_keys(name, keys[-1] if keys else ""):
            keys += page
        return keys

    def _page_of_keys(self, name: str, start_after: str) -> list[str]:
        with rados.ReadOpCtx() as operation:
            found, _ = self._ioctx.get_omap_keys(operation, start_after, _PAGE_KEYS)
            self._ioctx.operate_read_op(operation, name)
            return [key for key, _ in found]

    def _clone(self, parent: str, snapshot: str, name: str) -> None:
        self._rbd.clone(self._ioctx, parent, snapshot, self._ioctx, name, features=rbd.RBD_FEATURE_LAYERING)


def _refusing(function: Any) -> Any:
    def call(item: Any) -> Any:
        try:
            return function(item)
        except rbd.Error as error:
            raise CallError(type(error).__name__, str(error)) from error

    return call


def main(directory: str, pool: str) -> None:
    """Work in one pool of the dev cluster in a directory."""
    cluster = DevCluster(Path(directory))
    secrets = cluster.secrets()
    settings = {
        "mon_host": ",".join(cluster.monitors),
        "key": secrets["userKey"],
        # Snapshots need no protection to be cloned, as in the driver.
        "rbd_default_clone_format": "2",
        "log_file": "",
    }
    with rados.Rados(rados_id=secrets["userID"], conf=settings) as handle, handle.open_ioctx(pool) as ioctx:
        images = BareImages(handle, ioctx, pool)
        work({name: _refusing(function) for name, function in images.functions().items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
