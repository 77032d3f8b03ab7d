"""A pool as Ceph's own command line tools show it, so that a test does not believe the code it tests."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

from csi_host_rbd.ceph import bindings, omap
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.connections import Connections, Timeouts
from csi_host_rbd.ceph.encoding import packed
from csi_host_rbd.ceph.image import open_image
from csi_host_rbd.credentials import Credentials
from csi_host_rbd.devcluster import DevCluster

# The manager tries a removal that failed again after half a minute, and a minute after that.
_SECONDS = 150.0


@dataclass(frozen=True, kw_only=True)
class PoolView:
    """One RADOS namespace of a pool of a dev cluster."""

    cluster: DevCluster
    name: str
    namespace: str = ""

    def objects(self) -> list[str]:
        """Return the names of all objects."""
        return sorted(self._rados("ls").splitlines())

    def journal(self) -> dict[str, dict[str, str]]:
        """Return every object of ceph-csi's journal with its keys and values."""
        return {name: self.keys(name) for name in self.objects() if name.startswith("csi.")}

    def keys(self, name: str) -> dict[str, str]:
        """Return the keys and values of one object."""
        return {key: self.value(name, key) for key in self.key_names(name)}

    def key_names(self, name: str) -> list[str]:
        """Return the keys of one object."""
        return self._rados("listomapkeys", name).splitlines()

    def value(self, name: str, key: str) -> str:
        """Return one value, byte for byte."""
        # Without a file the tool prints a hex dump; "-" is the standard output.
        return self._rados("getomapval", name, key, "-")

    def create_object(self, name: str) -> None:
        """Make an empty object, exclusively."""
        self._rados("create", name)

    def set_key(self, name: str, key: str, value: str) -> None:
        """Write one key."""
        self._rados("setomapval", name, key, value)

    def set_keys(self, name: str, values: Mapping[str, str]) -> None:
        """Write many keys, through a connection of its own: the tool takes one at a time."""
        with self.connected() as pool:
            omap.set_keys(pool, name, values)

    def remove_keys(self, name: str) -> None:
        """Remove all keys of an object, which stays."""
        self._rados("clearomap", name)

    def remove_object(self, name: str) -> None:
        """Remove an object."""
        self._rados("rm", name)

    def manager_commands(self) -> int:
        """Return how many removals the manager has been asked for since it started, in all pools."""
        log = self.cluster.directory / "log" / "mgr.x.log"
        return log.read_text(encoding="utf-8", errors="replace").count("rbd task add trash remove")

    def images(self) -> list[str]:
        """Return the names of all images."""
        images: list[str] = json.loads(self._rbd("ls", "--format", "json"))
        return sorted(images)

    def trash(self) -> list[str]:
        """Return the former names of the images in the trash."""
        entries: list[dict[str, str]] = json.loads(self._rbd("trash", "ls", "--format", "json"))
        return sorted(entry["name"] for entry in entries)

    def cut_off_trash_move(self, image: str) -> None:
        """Move an image to the trash as librbd does when it is killed just before the last of its steps."""
        image_id = self.image(image)["id"]
        self._rbd("trash", "mv", image)
        moving, at_rest = b"\1", b"\0"
        with self.connected() as pool:
            pool.ioctx.execute("rbd_trash", "rbd", "trash_state_set", packed(image_id) + moving + at_rest)

    def image(self, name: str) -> dict[str, Any]:
        """Return what ``rbd info`` knows of an image."""
        information: dict[str, Any] = json.loads(self._rbd("info", name, "--format", "json"))
        return information

    def snapshots(self, image: str) -> dict[str, str]:
        """Return an image's snapshots and their namespaces; one in the trash by the name that it had."""
        found: list[dict[str, Any]] = json.loads(self._rbd("snap", "ls", "--all", image, "--format", "json"))
        return {str(one["namespace"].get("original_name", one["name"])): str(one["namespace"]["type"]) for one in found}

    def metadata(self, image: str) -> dict[str, str]:
        """Return an image's metadata."""
        metadata: dict[str, str] = json.loads(self._rbd("image-meta", "list", image, "--format", "json") or "{}")
        return metadata

    def id(self) -> int:
        """Return the pool's id."""
        pools = json.loads(self.cluster.ceph("osd", "pool", "ls", "detail", "--format", "json"))
        return next(int(pool["pool_id"]) for pool in pools if pool["pool_name"] == self.name)

    def in_namespace(self, namespace: str) -> Self:
        """Make a RADOS namespace in the pool and return the view of it."""
        self.cluster.rbd("namespace", "create", "--pool", self.name, "--namespace", namespace)
        return replace(self, namespace=namespace)

    @contextmanager
    def watched(self, image: str) -> Iterator[None]:
        """Have the image open for writing, by another client, for the length of the ``with``."""
        spec = "/".join(part for part in (self.name, self.namespace, image) if part)
        argv = ["rbd", "--conf", str(self.cluster.ceph_conf), "watch", spec]
        # It ends, and gives its watch back, when its standard input does: that is, with the ``with``. Killed, it would
        # leave a watch that the OSD forgets after 30 s only.
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL):
            self.wait_until(lambda: bool(self._watchers(image)), f"{image} is watched")
            yield
        self.wait_until(lambda: not self._watchers(image), f"{image} is not watched any more")

    @staticmethod
    def wait_until(is_so: Callable[[], bool], what: str) -> None:
        """Wait until something is so; AssertionError when that takes too long."""
        deadline = time.monotonic() + _SECONDS
        while not is_so():
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {_SECONDS:g} s in vain until {what}")
            time.sleep(0.1)

    @contextmanager
    def watched_in_trash(self, image_id: str) -> Iterator[None]:
        """Have an image in the trash open, by its id, for the length of the ``with``; the tool opens by name only."""
        with self.connected() as pool, open_image(pool, image_id=image_id):
            yield

    def wait_until_trash_is_empty(self) -> None:
        """Wait until the manager has removed what was put into the trash."""
        self.wait_until(lambda: not self.trash(), "the trash is empty")

    def enable_mirroring(self, image: str, *, mode: str = "journal") -> None:
        """Have an image mirrored, by its journal or by snapshots (``snapshot``); no daemon copies it anywhere.

        The latter needs the default namespace.
        """
        self._rbd("mirror", "pool", "enable", "image")
        if mode == "journal":
            features = {"exclusive-lock", "journaling"} - set(self.image(image)["features"])
            self._rbd("feature", "enable", image, *sorted(features))
        self._rbd("mirror", "image", "enable", image, mode)

    def write(self, image: str, content: bytes, *, offset: int = 0) -> None:
        """Write to an image."""
        with self.opened(image) as handle:
            handle.write(content, offset)

    def read(self, image: str, length: int, *, offset: int = 0) -> bytes:
        """Read from an image."""
        with self.opened(image) as handle:
            return bytes(handle.read(offset, length))

    @contextmanager
    def opened(self, image: str) -> Iterator[Any]:
        """Have an image open for writing, as a node has it, for the length of the ``with``."""
        with self.connected() as pool, bindings.rbd.Image(pool.ioctx, image) as handle:
            yield handle

    @contextmanager
    def connected(self) -> Iterator[Pool]:
        """Yield the pool by a connection of the test's own."""
        connections = Connections(timeouts=Timeouts())
        credentials = Credentials.from_secrets(self.cluster.secrets())
        with closing(connections), connections.use(",".join(self.cluster.monitors), credentials) as connection:
            yield connection.pool(self.name, self.namespace)

    def rbd(self, *arguments: str) -> str:
        """Run ``rbd`` in this pool and namespace."""
        return self._rbd(*arguments)

    def _watchers(self, image: str) -> list[object]:
        status: dict[str, list[object]] = json.loads(self._rbd("status", image, "--format", "json"))
        return status.get("watchers", [])

    def _rados(self, *arguments: str) -> str:
        return self.cluster.rados("--pool", self.name, "--namespace", self.namespace, *arguments)

    def _rbd(self, *arguments: str) -> str:
        return self.cluster.rbd("--pool", self.name, "--namespace", self.namespace, *arguments)
