"""The handle of a volume, snapshot or group: ceph-csi's, byte for byte, as PersistentVolumes keep it for ever.

``<version: 4 hex>-<length of the cluster id: 4 hex>-<cluster id>-<pool id: 16 hex>-<uuid: 36 characters>``
"""

from dataclasses import dataclass
from typing import Self

VERSION = 1
UUID_LENGTH = 36
MAX_LENGTH = 128
_FIXED_LENGTH = 64
_HEX = frozenset("0123456789abcdefABCDEF")
_CLUSTER_ID_START = 10
_POOL_ID_LENGTH = 16
_BITS = 64


class InvalidVolumeId(ValueError):
    """The text is not such a handle, or such a handle cannot be made; the text says why."""


@dataclass(frozen=True, kw_only=True)
class VolumeId:
    """A decoded handle; ``pool_id`` is the id of the image's pool."""

    cluster_id: str
    pool_id: int
    uuid: str
    version: int = VERSION

    def __str__(self) -> str:
        return self.encode()

    def encode(self) -> str:
        """Return the handle's text; raises InvalidVolumeId when its parts do not fit."""
        cluster_length = len(self.cluster_id.encode(errors="surrogatepass"))
        if _FIXED_LENGTH + cluster_length > MAX_LENGTH:
            raise InvalidVolumeId(
                f"the cluster id has {cluster_length} bytes, a handle has room for {MAX_LENGTH - _FIXED_LENGTH}"
            )
        if len(self.uuid.encode(errors="surrogatepass")) != UUID_LENGTH:
            raise InvalidVolumeId(f"the uuid has {len(self.uuid)} characters instead of {UUID_LENGTH}")
        # The number is two's complement there: what decodes as negative is written so again.
        pool = self.pool_id % 2**_BITS
        return f"{self.version:04x}-{cluster_length:04x}-{self.cluster_id}-{pool:016x}-{self.uuid}"

    @classmethod
    def parse(cls, handle: str) -> Self:
        """Decode a handle; raises InvalidVolumeId. Separators and the version's value are not compared (section 5)."""
        # Lengths count bytes, so a cluster id may hold anything.
        text = handle.encode(errors="surrogatepass")
        if len(text) < _FIXED_LENGTH:
            raise InvalidVolumeId(f"{len(text)} bytes are too few, {_FIXED_LENGTH} is the least")
        version = _number("version", text[0:4])
        end = _CLUSTER_ID_START + _number("length of the cluster id", text[5:9])
        rest = text[end + 1 :]
        if len(rest) < _POOL_ID_LENGTH + 1:
            raise InvalidVolumeId("the text ends before the pool id")
        pool_id = _number("pool id", rest[:_POOL_ID_LENGTH])
        uuid = rest[_POOL_ID_LENGTH + 1 :]
        if len(uuid) != UUID_LENGTH:
            raise InvalidVolumeId(f"what follows the pool id has {len(uuid)} bytes instead of {UUID_LENGTH}")
        return cls(
            version=version,
            cluster_id=_text(text[_CLUSTER_ID_START:end]),
            pool_id=pool_id - 2**_BITS if pool_id >= 2 ** (_BITS - 1) else pool_id,
            uuid=_text(uuid),
        )


def _number(what: str, digits: bytes) -> int:
    text = digits.decode(errors="replace")
    # int() alone would take signs, underscores and blanks.
    if not set(text) <= _HEX:
        raise InvalidVolumeId(f"the {what} {text!r} is not hexadecimal")
    return int(text, 16)


def _text(part: bytes) -> str:
    try:
        return part.decode()
    except UnicodeDecodeError:
        raise InvalidVolumeId("a length in it cuts a character in two") from None
