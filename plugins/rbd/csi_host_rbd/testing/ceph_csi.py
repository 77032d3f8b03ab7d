"""What ceph-csi leaves on a cluster, written with Ceph's own tools in ceph-csi's own order of writes."""

import uuid as uuids
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from csi_host_rbd.testing.pools import PoolView


@dataclass(frozen=True, kw_only=True)
class CephCsiVolume:
    """A volume as ceph-csi makes it. ``name`` is the CO's."""

    pool: PoolView
    name: str
    uuid: str

    @property
    def image(self) -> str:
        """The image's name."""
        return f"csi-vol-{self.uuid}"

    @property
    def volume_id(self) -> str:
        """The handle."""
        return _handle(self.pool, self.uuid)


@dataclass(frozen=True, kw_only=True)
class CephCsiSnapshot:
    """A snapshot as ceph-csi makes it. ``name`` is the CO's."""

    pool: PoolView
    name: str
    uuid: str

    @property
    def image(self) -> str:
        """The name of its image, and of the snapshot on it."""
        return f"csi-snap-{self.uuid}"

    @property
    def snapshot_id(self) -> str:
        """The handle."""
        return _handle(self.pool, self.uuid)


_Write = Callable[[], object]
# What the image of a snapshot and the image in between have, so that the chain can be flattened.
_HIDDEN = ("--rbd-default-clone-format", "2", "--image-feature", "layering", "--image-feature", "deep-flatten")
_CLASS = ("--rbd-default-clone-format", "2", "--image-feature", "layering")


def make_volume(pool: PoolView, name: str, *, steps: int = 6, size: str = "1G") -> CephCsiVolume:
    """Make a volume; fewer ``steps`` than 6 leave what a crash between two writes leaves.

    1 the uuid's object, empty; 2 the directory key; 3 the uuid's keys; 4 the image; 5 its id; 6 is done.
    """
    volume = CephCsiVolume(pool=pool, name=name, uuid=str(uuids.uuid4()))

    def create() -> None:
        pool.rbd("create", volume.image, "--size", size, "--image-feature", "layering")

    _run([*_reservation(volume), create, _store_image_id(volume)], steps)
    return volume


def make_snapshot(source: CephCsiVolume, name: str, *, steps: int = 10) -> CephCsiSnapshot:
    """Make a snapshot of a volume; fewer ``steps`` than 9 leave what a crash between two writes leaves.

    1 the uuid's object; 2 the directory key; 3 the uuid's keys; 4 a snapshot on the source; 5 the clone of it; 6 the
    snapshot of the source removed; 7 the snapshot on the clone; 8 the image's id.
    """
    pool = source.pool
    snapshot = CephCsiSnapshot(pool=pool, name=name, uuid=str(uuids.uuid4()))
    image = snapshot.image
    writes: list[_Write] = [
        *_reservation(snapshot, source=source.image),
        lambda: pool.rbd("snap", "create", f"{source.image}@{image}"),
        lambda: _clone(pool, f"{source.image}@{image}", image, _HIDDEN),
        lambda: pool.rbd("snap", "rm", f"{source.image}@{image}"),
        lambda: pool.rbd("snap", "create", f"{image}@{image}"),
        _store_image_id(snapshot),
    ]
    _run(writes, steps)
    return snapshot


def make_restore(source: CephCsiSnapshot, name: str, *, steps: int = 6) -> CephCsiVolume:
    """Make a volume from a snapshot: 1 to 3 as ``make_volume``; 4 the clone; 5 the image's id."""
    pool = source.pool
    volume = CephCsiVolume(pool=pool, name=name, uuid=str(uuids.uuid4()))

    def clone() -> None:
        _clone(pool, f"{source.image}@{source.image}", volume.image, _CLASS)

    _run([*_reservation(volume), clone, _store_image_id(volume)], steps)
    return volume


def make_clone(source: CephCsiVolume, name: str, *, steps: int = 12) -> CephCsiVolume:
    """Make a volume from a volume, with the image in between.

    1 to 3 as ``make_volume``; 4 a snapshot on the source; 5 the image in between; 6 the snapshot of the source removed;
    7 a snapshot on the image in between; 8 the volume's image; 9 that snapshot removed; 10 the image's id.
    """
    pool = source.pool
    volume = CephCsiVolume(pool=pool, name=name, uuid=str(uuids.uuid4()))
    image, between = volume.image, volume.image + "-temp"
    writes: list[_Write] = [
        *_reservation(volume),
        lambda: pool.rbd("snap", "create", f"{source.image}@{between}"),
        lambda: _clone(pool, f"{source.image}@{between}", between, _HIDDEN),
        lambda: pool.rbd("snap", "rm", f"{source.image}@{between}"),
        lambda: pool.rbd("snap", "create", f"{between}@{image}"),
        lambda: _clone(pool, f"{between}@{image}", image, _CLASS),
        lambda: pool.rbd("snap", "rm", f"{between}@{image}"),
        _store_image_id(volume),
    ]
    _run(writes, steps)
    return volume


def _run(writes: Sequence[_Write], steps: int) -> None:
    for write in writes[:steps]:
        write()


def _reservation(made: CephCsiVolume | CephCsiSnapshot, *, source: str = "") -> list[_Write]:
    kind = "volume" if isinstance(made, CephCsiVolume) else "snap"
    entry = f"csi.{kind}.{made.uuid}"
    name_key, directory = ("csi.volname", "csi.volumes") if kind == "volume" else ("csi.snapname", "csi.snaps")
    keys = {name_key: made.name, "csi.imagename": made.image, "csi.volume.owner": "default"}
    if source:
        keys["csi.source"] = source

    def write_keys() -> None:
        for key, value in keys.items():
            made.pool.set_key(entry, key, value)

    return [
        lambda: made.pool.create_object(entry),
        lambda: made.pool.set_key(f"{directory}.default", f"csi.{kind}.{made.name}", made.uuid),
        write_keys,
    ]


def _store_image_id(made: CephCsiVolume | CephCsiSnapshot) -> _Write:
    entry = f"csi.volume.{made.uuid}" if isinstance(made, CephCsiVolume) else f"csi.snap.{made.uuid}"
    return lambda: made.pool.set_key(entry, "csi.imageid", made.pool.image(made.image)["id"])


def _clone(pool: PoolView, source: str, name: str, options: Sequence[str]) -> None:
    # The tool takes the pool and namespace of its options for the source only.
    place = "/".join(part for part in (pool.name, pool.namespace) if part)
    pool.cluster.rbd("clone", *options, f"{place}/{source}", f"{place}/{name}")


def _handle(pool: PoolView, uuid: str) -> str:
    cluster_id = pool.cluster.cluster_id
    return f"0001-{len(cluster_id):04x}-{cluster_id}-{pool.id():016x}-{uuid}"


def trash_image(volume: CephCsiVolume) -> None:
    """Do what ceph-csi's DeleteVolume does first, and stop there: the image lies in the trash, without a task."""
    volume.pool.rbd("trash", "mv", volume.image)
