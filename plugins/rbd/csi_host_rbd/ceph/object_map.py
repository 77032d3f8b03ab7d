"""Object maps: what librbd keeps of each object of an image, at each of its snapshots.

The RADOS object ``rbd_object_map.<image id>.<snapshot id: 16 hex>`` has a header of 18 bytes (a length, a version, a
length, the count of objects: Ceph's encoding of a BitVector<2>), then two bits an object, four objects in a byte with
the first one highest. The checksums behind that are not read: the store has its own. The format has not changed since
Ceph 10.

A map at a snapshot says of each object whether it exists, and (with the feature fast-diff) whether it was written since
the snapshot before. When a snapshot is removed, librbd first puts its marks into the next one's map; so reading the
maps in the order of the snapshots misses nothing, and one that is gone means: look again which there are.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.failures import BackendUnavailable, translated

_HEADER = struct.Struct("<IBBIQ")
_OBJECTS_A_BYTE = 4
_BITS_AN_OBJECT = 2
# What a byte with the lower bit of each object says, as one byte an object.
_MARKS = [bytes(byte >> shift & 1 for shift in (6, 4, 2, 0)) for byte in range(256)]


class ObjectMapDamaged(BackendUnavailable):
    """An object map is not as its header says."""


@dataclass(frozen=True, kw_only=True)
class ObjectStates:
    """The states of some objects in a row; ``bits`` has two an object, the first object's are the highest.

    The states are librbd's: 0 there is none, 1 written since the last snapshot, 2 being removed, 3 unchanged since.
    """

    bits: int
    count: int

    @classmethod
    def of(cls, data: bytes, count: int) -> Self:
        """Read ``count`` states out of whole bytes."""
        spare = len(data) * _OBJECTS_A_BYTE - count
        return cls(bits=int.from_bytes(data) >> spare * _BITS_AN_OBJECT, count=count)

    @property
    def existing(self) -> int:
        """The objects there are: the lower of each object's two bits is set."""
        return (self.bits | self.bits >> 1) & self._lower

    @property
    def written(self) -> int:
        """The objects written since the snapshot before, likewise."""
        return (self.bits ^ self.bits >> 1) & self._lower

    @property
    def _lower(self) -> int:
        return int.from_bytes(b"\x55" * -(-self.count // _OBJECTS_A_BYTE)) & ((1 << self.count * _BITS_AN_OBJECT) - 1)


def changed(base: ObjectStates, later: Sequence[ObjectStates]) -> int:
    """Return the objects that changed from a snapshot to the last of ``later``, given the maps of all in between."""
    found, before = 0, base.existing
    for states in later:
        found |= states.written | (before ^ states.existing)
        before = states.existing
    return found


def marks(objects: int, count: int) -> bytes:
    """Return a byte for each of ``count`` objects, 1 for those whose lower bit is set in ``objects``."""
    size = -(-count // _OBJECTS_A_BYTE)
    data = (objects << (size * _OBJECTS_A_BYTE - count) * _BITS_AN_OBJECT).to_bytes(size)
    return b"".join(_MARKS[byte] for byte in data)[:count]


def read_states(pool: Pool, image_id: str, snapshot_id: int, objects: range) -> ObjectStates:
    """Return what the map at a snapshot says of ``objects``, which begin with a whole byte of it. 2 operations.

    There are none beyond the map's end. Raises ObjectNotFound when there is no map, ObjectMapDamaged.
    """
    name = f"rbd_object_map.{image_id}.{snapshot_id:016x}"
    known = min(len(objects), max(0, _count(pool, name) - objects.start))
    size = -(-known // _OBJECTS_A_BYTE)
    data = _read(pool, name, size, _HEADER.size + objects.start // _OBJECTS_A_BYTE) if size else b""
    states = ObjectStates.of(data, known)
    missing = len(objects) - known
    return ObjectStates(bits=states.bits << missing * _BITS_AN_OBJECT, count=len(objects))


def _count(pool: Pool, name: str) -> int:
    length, version, compatible, size, count = _HEADER.unpack(_read(pool, name, _HEADER.size, 0))
    # The outer length counts what follows it; the inner one what follows the two versions and itself.
    if (length, version, compatible, size) != (_HEADER.size - 4, 1, 1, 8):
        raise ObjectMapDamaged(f"object map {pool.name}/{name} has a header that is not known")
    return int(count)


def _read(pool: Pool, name: str, length: int, offset: int) -> bytes:
    with translated(f"reading object map {pool.name}/{name}"):
        data: bytes = pool.ioctx.read(name, length, offset)
    if len(data) != length:
        raise ObjectMapDamaged(f"object map {pool.name}/{name} ends before byte {offset + length}")
    return data
