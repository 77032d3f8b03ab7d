"""A volume that a workload writes to, with snapshots of it and what a backup tool learns of them over the socket."""

import random
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from csi_host.proto import csi_pb2
from csi_host_rbd.ceph.bindings import rados, rbd
from csi_host_rbd.testing import ceph_csi
from csi_host_rbd.testing.ceph_csi import CephCsiVolume
from csi_host_rbd.testing.rig import GIB, RbdRig

Range = tuple[int, int]
FAST_DIFF = ("layering", "exclusive-lock", "object-map", "fast-diff")
_SECTOR = 512
# A stream takes as long as its volume is big.
_STREAM_SECONDS = 240.0
_CHUNK = 16 * 1024**2


@dataclass(frozen=True, kw_only=True)
class Taken:
    """A CSI snapshot; ``image`` is the name of its image, and of the snapshot on that."""

    snapshot_id: str
    image: str


@dataclass(frozen=True, kw_only=True)
class Disk:
    """A volume; ``touched`` are the ranges that were written or discarded since it was last cleared."""

    rig: RbdRig
    ioctx: Any
    volume_id: str
    image: str
    parameters: Mapping[str, str]
    touched: list[Range] = field(default_factory=list)

    @contextmanager
    def opened(self) -> Iterator[Any]:
        """Open the image for writing, as another client does."""
        with rbd.Image(self.ioctx, self.image) as image:
            yield image

    def write(self, ranges: Sequence[Range], *, seed: int = 0) -> None:
        """Write bytes that nobody has written before."""
        chance = random.Random(seed)  # noqa: S311 - test data
        with self.opened() as image:
            for offset, length in ranges:
                image.write(chance.randbytes(length), offset)
        self.touched.extend(ranges)

    def discard(self, ranges: Sequence[Range]) -> None:
        """Give ranges back."""
        with self.opened() as image:
            for offset, length in ranges:
                image.discard(offset, length)
        self.touched.extend(ranges)

    def resize(self, size_bytes: int) -> None:
        """Give the image another size, a smaller one as well."""
        with self.opened() as image:
            image.resize(size_bytes)

    def snapshot(self, name: str) -> Taken:
        """Take a CSI snapshot."""
        snapshot_id = self.rig.snapshot(self.volume_id, f"{name}-{self.image}").snapshot_id
        return Taken(snapshot_id=snapshot_id, image=f"csi-snap-{snapshot_id[-36:]}")

    def ceph_csi_snapshot(self, name: str) -> Taken:
        """Take a snapshot as ceph-csi does."""
        volume = CephCsiVolume(pool=self.rig.pool, name=name, uuid=self.volume_id[-36:])
        made = ceph_csi.make_snapshot(volume, name)
        return Taken(snapshot_id=made.snapshot_id, image=made.image)

    def restored(self, snapshot: Taken) -> "Disk":
        """Make a volume of the same class from a snapshot of this one."""
        volume = self.rig.restore(snapshot.snapshot_id, f"pvc-{uuid.uuid4()}", **_class(self.rig, self.parameters))
        return _disk(self.rig, self.ioctx, volume, self.parameters)


def random_ranges(seed: int, *, size_bytes: int, count: int, most: int) -> list[Range]:
    """Return ranges of whole sectors, up to ``most`` bytes long."""
    chance = random.Random(seed)  # noqa: S311 - test data
    found = []
    for _ in range(count):
        length = chance.randint(1, most // _SECTOR) * _SECTOR
        found.append((chance.randrange(0, size_bytes - length, _SECTOR), length))
    return found


def make_disk_on(
    rig: RbdRig, ioctx: Any, *, size_bytes: int = GIB, features: Sequence[str] = FAST_DIFF, **parameters: str
) -> Disk:
    """Make a volume; ``parameters`` are the StorageClass's."""
    parameters |= {"imageFeatures": ",".join(features)}
    capacity = csi_pb2.CapacityRange(required_bytes=size_bytes)
    volume = rig.create(f"pvc-{uuid.uuid4()}", **_class(rig, parameters) | {"capacity_range": capacity})
    return _disk(rig, ioctx, volume, parameters)


MakeDisk = Callable[..., Disk]


def _class(rig: RbdRig, parameters: Mapping[str, str]) -> dict[str, Any]:
    return {"parameters": rig.parameters(**parameters), "capacity_range": None}


def _disk(rig: RbdRig, ioctx: Any, volume: csi_pb2.Volume, parameters: Mapping[str, str]) -> Disk:
    image = volume.volume_context["imageName"]
    return Disk(rig=rig, ioctx=ioctx, volume_id=volume.volume_id, image=image, parameters=parameters)


def remove_snapshot(disk: Disk, snapshot: Taken) -> None:
    """Delete a snapshot and wait until it is gone for good, and with it what it is a clone of."""
    disk.rig.delete_snapshot(snapshot.snapshot_id)
    disk.rig.pool.wait_until_trash_is_empty()


def damage_map(disk: Disk, how: str) -> None:
    """Do something to the object map at the newest snapshot of a volume."""
    image = disk.image
    with rbd.Image(disk.ioctx, image, read_only=True) as opened:
        name = f"rbd_object_map.{opened.id()}.{max(one['id'] for one in opened.list_snaps()):016x}"
    if how == "removed":
        disk.ioctx.remove_object(name)
    elif how == "cut short":
        disk.ioctx.trunc(name, 20)
    elif how == "scribbled":
        disk.ioctx.write_full(name, b"\xff" * 100)
    else:
        # The maps are made anew, empty, and marked.
        disk.rig.pool.rbd("feature", "disable", image, "object-map")
        disk.rig.pool.rbd("feature", "enable", image, "object-map", "fast-diff")


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A backup tool."""

    rig: RbdRig

    def allocated(
        self, snapshot: Taken, *, timeout: float = _STREAM_SECONDS, **changes: Any
    ) -> Iterator[csi_pb2.GetMetadataAllocatedResponse]:
        """Begin GetMetadataAllocated."""
        fields: dict[str, Any] = {"snapshot_id": snapshot.snapshot_id, "secrets": self.rig.secrets}
        request = csi_pb2.GetMetadataAllocatedRequest(**(fields | changes))
        return self.rig.served.snapshot_metadata.GetMetadataAllocated(request, timeout=timeout)

    def delta(self, base: Taken, target: Taken, **changes: Any) -> Iterator[csi_pb2.GetMetadataDeltaResponse]:
        """Begin GetMetadataDelta."""
        fields: dict[str, Any] = {
            "base_snapshot_id": base.snapshot_id,
            "target_snapshot_id": target.snapshot_id,
            "secrets": self.rig.secrets,
        }
        request = csi_pb2.GetMetadataDeltaRequest(**(fields | changes))
        return self.rig.served.snapshot_metadata.GetMetadataDelta(request, timeout=_STREAM_SECONDS)


def refusal(call: Callable[[], Any]) -> tuple[str, str]:
    """Return the code and the words that a stream ends with; raises AssertionError when it is whole."""
    try:
        messages = list(call())
    except grpc.RpcError as error:
        return error.code().name, error.details() or ""
    raise AssertionError(f"a refusal was expected, got {messages}")


Messages = Iterator[csi_pb2.GetMetadataAllocatedResponse] | Iterator[csi_pb2.GetMetadataDeltaResponse]


def ranges_of(messages: Messages) -> list[Range]:
    """Return the ranges of a whole stream; raises AssertionError where it breaks a rule of the spec."""
    found: list[Range] = []
    kinds = set()
    for message in messages:
        kinds.add((message.block_metadata_type, message.volume_capacity_bytes))
        found.extend((one.byte_offset, one.size_bytes) for one in message.block_metadata)
    ends = [0, *(offset + length for offset, length in found)]
    starts = [offset for offset, _ in found]
    if len(kinds) != 1 or any(length <= 0 for _, length in found):
        raise AssertionError(f"messages of one kind and no empty ranges were expected, got {kinds}, {found}")
    if any(start < end for start, end in zip(starts, ends, strict=False)):
        raise AssertionError(f"ranges that go up and do not overlap were expected, got {found}")
    return found


def uncovered(wanted: Sequence[Range], found: Sequence[Range]) -> list[Range]:
    """Return those of ``wanted`` that are not wholly within one of ``found``, whose neighbours never touch."""
    return [
        (offset, length)
        for offset, length in wanted
        if not any(start <= offset and offset + length <= start + size for start, size in found)
    ]


def whole_objects(touched: Sequence[Range], object_bytes: int) -> list[Range]:
    """Return the ranges of the objects that some ranges touch, neighbours made one."""
    numbers = sorted(
        {
            number
            for offset, length in touched
            for number in range(offset // object_bytes, (offset + length - 1) // object_bytes + 1)
        }
    )
    found: list[Range] = []
    for number in numbers:
        if found and sum(found[-1]) == number * object_bytes:
            found[-1] = (found[-1][0], found[-1][1] + object_bytes)
        else:
            found.append((number * object_bytes, object_bytes))
    return found


def differences(
    disk: Disk, base: Taken, target: Taken, *, with_nothing: bool = False, unit: int = _SECTOR
) -> list[Range]:
    """Return where the content of two snapshots differs, read as a restore reads it; what one lacks is zeros.

    ``with_nothing`` compares the target with an image full of zeros instead.
    """
    found: list[Range] = []
    with (
        rbd.Image(disk.ioctx, base.image, snapshot=base.image, read_only=True) as older,
        rbd.Image(disk.ioctx, target.image, snapshot=target.image, read_only=True) as newer,
    ):
        size_bytes = newer.size()
        for start in range(0, size_bytes, _CHUNK):
            length = min(_CHUNK, size_bytes - start)
            known = 0 if with_nothing else max(0, min(length, older.size() - start))
            before = (older.read(start, known) if known else b"").ljust(length, b"\0")
            after = newer.read(start, length)
            if before != after:
                found.extend(
                    (start + at, min(unit, length - at))
                    for at in range(0, length, unit)
                    if before[at : at + unit] != after[at : at + unit]
                )
    return found


@contextmanager
def opened_pool(rig: RbdRig) -> Iterator[Any]:
    """Yield the rig's pool as another client of the cluster has it."""
    with (
        rados.Rados(conffile=str(rig.pool.cluster.ceph_conf)) as handle,
        handle.open_ioctx(rig.pool.name) as ioctx,
    ):
        ioctx.set_namespace(rig.pool.namespace)
        yield ioctx
