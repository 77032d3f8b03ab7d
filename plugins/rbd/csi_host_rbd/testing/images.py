"""Images as another client of the cluster sees them."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from csi_host_rbd.ceph.bindings import rbd

MIB = 1024**2


@dataclass(frozen=True, kw_only=True)
class Images:
    """Images of the cluster, used as another client would: straight through librbd."""

    ioctx: Any

    def make(self, size_bytes: int = 64 * MIB) -> str:
        """Make an image and return its name."""
        name = f"image-{uuid.uuid4()}"
        rbd.RBD().create(self.ioctx, name, size_bytes)
        return name

    @contextmanager
    def opened(self, name: str, *, read_only: bool = True) -> Iterator[Any]:
        """Yield the open image."""
        with rbd.Image(self.ioctx, name, read_only=read_only) as image:
            yield image

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Return bytes of an image."""
        with self.opened(name) as image:
            return bytes(image.read(offset, length))

    def resize(self, name: str, size_bytes: int) -> None:
        """Give an image another size."""
        with self.opened(name, read_only=False) as image:
            image.resize(size_bytes)

    def size(self, name: str) -> int:
        """Return the size of an image in bytes."""
        with self.opened(name) as image:
            return int(image.size())

    def watchers(self, name: str) -> int:
        """Return how many clients have an image open."""
        with self.opened(name) as image:
            return len(list(image.watchers_list()))
