"""What a LUKS header says of itself: read from the image, so that no device is needed for it.

Only what decides whether an image may be written to is read: is there a header at all, has any passphrase ever been
able to open it, and where does the data begin. The format is cryptsetup's "LUKS2 On-Disk Format Specification" (two
copies, each a binary part with a checksum over itself and a JSON part), and of LUKS1 its first fields. A copy whose
checksum is wrong counts as damaged; the other one is taken then, as cryptsetup does.
"""

import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass

Read = Callable[[int, int], bytes]

_BINARY_BYTES = 4096
_FIRST, _SECOND = b"LUKS\xba\xbe", b"SKUL\xba\xbe"
# Where the second copy may begin: behind the first, whose sizes are these (the specification's table 1).
_COPY_BYTES = tuple(0x4000 << doubled for doubled in range(9))
_CHECKSUM_OFFSET, _CHECKSUM_LIMIT = 448, 64
_V1, _V2 = 1, 2
_SECTOR_BYTES = 512


@dataclass(frozen=True, kw_only=True)
class LuksHeader:
    """A header: its LUKS version, its UUID, whether it has any passphrase, and how many bytes it takes of the image."""

    version: int
    uuid: str
    has_passphrases: bool
    data_offset: int


def read_header(read: Read) -> LuksHeader | None:
    """Return the header of an image, None when it has none that is whole; ``read`` takes an offset and a length."""
    start = read(0, _BINARY_BYTES)
    if start[:6] == _FIRST and _version(start) == _V1:
        return _first_version(start)
    copies = [_second_version(read, 0, _FIRST)]
    if copies[0] is None:
        copies += [_second_version(read, offset, _SECOND) for offset in _COPY_BYTES]
    return next((copy for copy in copies if copy is not None), None)


def _first_version(start: bytes) -> LuksHeader:
    (payload_sectors,) = struct.unpack_from(">I", start, 104)
    states = [struct.unpack_from(">I", start, 208 + 48 * slot)[0] for slot in range(8)]
    enabled = 0x00AC71F3
    return LuksHeader(
        version=_V1,
        uuid=_text(start[168:208]),
        has_passphrases=enabled in states,
        data_offset=payload_sectors * _SECTOR_BYTES,
    )


def _second_version(read: Read, offset: int, magic: bytes) -> LuksHeader | None:
    binary = read(offset, _BINARY_BYTES)
    if binary[:6] != magic or _version(binary) != _V2:
        return None
    (copy_bytes,) = struct.unpack_from(">Q", binary, 8)
    if copy_bytes not in _COPY_BYTES:
        return None
    text = read(offset + _BINARY_BYTES, copy_bytes - _BINARY_BYTES)
    if not _is_whole(binary, text):
        return None
    members = json.loads(text.rstrip(b"\0"))
    offsets = [int(segment["offset"]) for segment in members["segments"].values()]
    return LuksHeader(
        version=_V2, uuid=_text(binary[168:208]), has_passphrases=bool(members["keyslots"]), data_offset=min(offsets)
    )


def _is_whole(binary: bytes, text: bytes) -> bool:
    try:
        checksum = hashlib.new(_text(binary[72:104]), usedforsecurity=False)
    except ValueError:
        return False
    end = _CHECKSUM_OFFSET + _CHECKSUM_LIMIT
    checksum.update(binary[:_CHECKSUM_OFFSET] + bytes(_CHECKSUM_LIMIT) + binary[end:] + text)
    return binary[_CHECKSUM_OFFSET:end][: checksum.digest_size] == checksum.digest()


def _version(binary: bytes) -> int:
    return int.from_bytes(binary[6:8], "big")


def _text(field: bytes) -> str:
    return field.split(b"\0")[0].decode(errors="replace")
