"""What a volume holds, for tests of copies: a few blocks that all say the same."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from csi_host_rbd.ceph.bindings import rbd

_BLOCK_BYTES = 4096
_MIB = 1024**2
# The first object, its middle, one far behind it, and the last block of the smallest volume.
_OFFSETS = (0, 2 * _MIB, 333 * _MIB, 1024 * _MIB - _BLOCK_BYTES)


@dataclass(frozen=True, kw_only=True)
class Patterns:
    """Writes and reads what images hold, as another client would: straight through librbd."""

    ioctx: Any

    def write(self, image: str, text: str) -> None:
        """Fill the blocks of an image with what a text stands for."""
        with rbd.Image(self.ioctx, image) as opened:
            for offset in _OFFSETS:
                opened.write(_block(text, offset), offset)
            opened.flush()

    def differs(self, image: str, text: str) -> str:
        """Return where an image does not hold what a text stands for, "" when it does all over."""
        with self.opened(image) as opened:
            wrong = [offset for offset in _OFFSETS if opened.read(offset, _BLOCK_BYTES) != _block(text, offset)]
        return f"{image} does not hold {text!r} at {wrong}" if wrong else ""

    @contextmanager
    def opened(self, image: str) -> Iterator[Any]:
        """Yield an image opened for reading."""
        with rbd.Image(self.ioctx, image, read_only=True) as one:
            yield one


def _block(text: str, offset: int) -> bytes:
    if not text:
        return bytes(_BLOCK_BYTES)
    return hashlib.sha512(f"{text}@{offset}".encode()).digest() * (_BLOCK_BYTES // 64)
