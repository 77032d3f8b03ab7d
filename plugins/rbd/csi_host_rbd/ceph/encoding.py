"""Ceph's own encoding of what object classes take and answer: little-endian numbers, texts with a 32-bit length."""

import struct
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_LENGTH = struct.Struct("<I")
_START = struct.Struct("<BBI")
_SIGNED = struct.Struct("<q")
_UNSIGNED = struct.Struct("<Q")


class EncodingInvalid(ValueError):
    """The bytes end too early for what they should hold."""


def packed(text: str) -> bytes:
    """Return a text as Ceph writes it."""
    content = text.encode()
    return _LENGTH.pack(len(content)) + content


def packed_struct(content: bytes) -> bytes:
    """Return a structure in its first version."""
    return _START.pack(1, 1, len(content)) + content


def packed_u64(number: int) -> bytes:
    """Return an unsigned 64-bit number."""
    return _UNSIGNED.pack(number)


class Decoder:
    """Reads values out of bytes in order; each method raises EncodingInvalid when they end too early."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._position = 0

    @property
    def is_at_end(self) -> bool:
        """Whether nothing is left: what a newer version adds to a structure is not there in an older one."""
        return self._position == len(self._content)

    def flag(self) -> bool:
        """Read a truth value, as what may be there begins with one that says whether it is."""
        return self._take(1) != b"\0"

    def u8(self) -> int:
        """Read an unsigned 8-bit number."""
        return self._take(1)[0]

    def u32(self) -> int:
        """Read an unsigned 32-bit number."""
        return int(self._unpack(_LENGTH)[0])

    def u64(self) -> int:
        """Read an unsigned 64-bit number."""
        return int(self._unpack(_UNSIGNED)[0])

    def s64(self) -> int:
        """Read a signed 64-bit number."""
        return int(self._unpack(_SIGNED)[0])

    def text(self) -> str:
        """Read a text."""
        return self._take(self.u32()).decode(errors="replace")

    def raw(self, length: int) -> bytes:
        """Read so many bytes as they are."""
        return self._take(length)

    def versioned(self, read: Callable[["Decoder"], T]) -> T:
        """Read a structure that says its version and length; what a newer version adds is skipped."""
        _, _, length = self._unpack(_START)
        return read(Decoder(self._take(length)))

    def _unpack(self, layout: struct.Struct) -> tuple[int, ...]:
        return layout.unpack(self._take(layout.size))

    def _take(self, length: int) -> bytes:
        taken = self._content[self._position : self._position + length]
        if len(taken) < length:
            raise EncodingInvalid(f"expected {length} bytes at {self._position}, there are {len(taken)}")
        self._position += length
        return taken
