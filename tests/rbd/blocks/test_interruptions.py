"""Streams of blocks that are cut off: by their reader, by a deletion, by a cluster that hangs; and very long ones."""

import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from csi_host_rbd.backend import Backend
from csi_host_rbd.ceph.bindings import rbd
from csi_host_rbd.ceph.connections import Connections, Timeouts
from csi_host_rbd.ceph.extents import Extent
from csi_host_rbd.ceph.failures import BackendTimeout, BackendUnavailable
from csi_host_rbd.changed_blocks import ChangedBlocks, SnapshotChanged
from csi_host_rbd.cluster_mapping import ClusterMapping
from csi_host_rbd.clusters import Clusters
from csi_host_rbd.devcluster import DevCluster
from csi_host_rbd.errors import SnapshotNotFound
from csi_host_rbd.places import Places
from csi_host_rbd.shared_locks import NoSharedLocks
from csi_host_rbd.testing.disks import (
    FAST_DIFF,
    Disk,
    MakeDisk,
    Reader,
    Taken,
    ranges_of,
    refusal,
    remove_snapshot,
    uncovered,
)
from csi_host_rbd.testing.rig import RbdRig, write_clusters_file

pytestmark = pytest.mark.ceph

KIB = 1024
MIB = 1024**2
TIB = 1024**4
OBJECT = 64 * KIB
# Three windows when the objects are looked at one by one.
SIZE = 3 * 256 * OBJECT
_OPERATION_SECONDS = 3.0

Windows = Iterator[Sequence[Extent]]


@pytest.fixture
def blocks(rig: RbdRig, tmp_path: Path) -> Iterator[ChangedBlocks]:
    """What the driver's own is, with little patience."""
    connections = Connections(timeouts=Timeouts(connect=5.0, operation=_OPERATION_SECONDS))
    clusters = Clusters(write_clusters_file(rig.pool, tmp_path))
    backend = Backend(clusters=clusters, connections=connections, instance_id="default")
    with closing(connections):
        yield ChangedBlocks(Places(backend, ClusterMapping(tmp_path / "none.json"), NoSharedLocks()))


@pytest.fixture
def begun(make_disk: MakeDisk, blocks: ChangedBlocks) -> Callable[..., Any]:
    @contextmanager
    def begin(which: str) -> Iterator[tuple[Disk, Taken, Windows]]:
        """Read the first of three windows."""
        disk = make_disk(size_bytes=SIZE, features=("layering",), objectSize=str(OBJECT))
        base = disk.snapshot("base")
        disk.write([(0, 512), (SIZE // 2, 512), (SIZE - 512, 512)])
        target = disk.snapshot("target")
        with blocks.delta(base.snapshot_id, target.snapshot_id, disk.rig.secrets, start=0) as found:
            windows = found.parts
            assert next(windows) == [Extent(0, OBJECT)]
            yield disk, {"base": base, "target": target}[which], windows

    return begin


@pytest.mark.parametrize("which", ["base", "target"])
def test_a_snapshot_that_is_deleted_meanwhile_ends_the_stream_and_is_not_found_then(
    begun: Callable[..., Any], blocks: ChangedBlocks, which: str
) -> None:
    with begun(which) as (disk, deleted, windows):
        remove_snapshot(disk, deleted)
        with pytest.raises(SnapshotChanged, match=deleted.snapshot_id):
            next(windows)
    with (
        pytest.raises(SnapshotNotFound),
        blocks.allocated(deleted.snapshot_id, disk.rig.secrets, start=0),
    ):
        pass


@pytest.mark.parametrize("features", [FAST_DIFF, ("layering",)], ids=["fast-diff", "layering"])
def test_when_the_volume_and_both_snapshots_go_meanwhile_the_stream_ends_in_the_same_way(
    make_disk: MakeDisk, blocks: ChangedBlocks, features: tuple[str, ...]
) -> None:
    disk = make_disk(size_bytes=SIZE, features=features, objectSize=str(OBJECT))
    base = disk.snapshot("base")
    disk.write([(0, 512)])
    target = disk.snapshot("target")
    secrets = disk.rig.secrets
    with (
        blocks.delta(base.snapshot_id, target.snapshot_id, secrets, start=0) as delta,
        blocks.allocated(target.snapshot_id, secrets, start=0) as allocated,
    ):
        # By hand: the manager tries again after half a minute when the volume's turn comes before the snapshots'.
        for snapshot in (base, target):
            disk.rig.pool.rbd("snap", "rm", f"{snapshot.image}@{snapshot.image}")
            disk.rig.pool.rbd("rm", snapshot.image)
        disk.rig.pool.rbd("rm", disk.image)
        for found in (delta, allocated):
            with pytest.raises(SnapshotChanged):
                next(found.parts)


@pytest.mark.parametrize("which", ["base", "target"])
def test_a_snapshot_that_is_flattened_meanwhile_ends_the_stream_which_can_be_resumed(
    begun: Callable[..., Any], reader: Reader, which: str
) -> None:
    with begun(which) as (disk, flattened, windows):
        disk.rig.pool.rbd("flatten", flattened.image)
        with pytest.raises(SnapshotChanged):
            next(windows)
    found = ranges_of(reader.allocated(flattened))
    assert not uncovered([] if which == "base" else disk.touched, found)


def test_a_flattened_snapshot_that_is_deleted_meanwhile_ends_the_stream_before_its_data_are_gone(
    make_disk: MakeDisk, blocks: ChangedBlocks
) -> None:
    disk = make_disk(size_bytes=SIZE, features=("layering",), objectSize=str(OBJECT))
    disk.write([(0, 512), (SIZE - 512, 512)])
    target = disk.snapshot("target")
    disk.rig.pool.rbd("flatten", target.image)
    with blocks.allocated(target.snapshot_id, disk.rig.secrets, start=0) as found:
        disk.rig.delete_snapshot(target.snapshot_id)
        with pytest.raises(SnapshotChanged):
            next(found.parts)


def test_a_cluster_that_hangs_ends_the_stream_and_it_can_be_resumed(
    begun: Callable[..., Any], ceph: DevCluster
) -> None:
    with begun("target") as (_, _, windows):
        ceph.stop_osd()
        started = time.monotonic()
        try:
            with pytest.raises((BackendTimeout, BackendUnavailable)):
                next(windows)
            assert time.monotonic() - started < 10 * _OPERATION_SECONDS
        finally:
            ceph.resume_osd()


def test_a_stream_whose_reader_leaves_ends_long_before_its_end(make_disk: MakeDisk, reader: Reader) -> None:
    # Some ten million objects to look at, one by one.
    disk = make_disk(size_bytes=40 * TIB, features=("layering",))
    base = disk.snapshot("base")
    disk.write([(0, 512), (8 * MIB, 512)])
    target = disk.snapshot("target")
    for begin in (partial(reader.delta, base, target), partial(reader.allocated, target)):
        # gRPC's own object, which can be cancelled.
        stream: Any = begin()
        assert next(stream).block_metadata[0].byte_offset == 0
        stream.cancel()
        assert not reader.rig.served.server.in_flight.wait_until_none(deadline=time.monotonic() + 30)


def test_a_stream_of_half_a_million_tuples_takes_no_memory(make_disk: MakeDisk, reader: Reader) -> None:
    size_bytes = 4 * TIB
    disk = make_disk(size_bytes=size_bytes)
    base, target = disk.snapshot("base"), disk.snapshot("target")
    _scribble_every_other_object(disk)
    count, last = 0, -1
    with _memory() as memory:
        for message in reader.delta(base, target):
            offsets = [one.byte_offset for one in message.block_metadata]
            assert all(before < after for before, after in pairwise([last, *offsets]))
            count, last = count + len(offsets), max(offsets, default=last)
    assert count == size_bytes // (8 * MIB)
    # As Python's objects all of them would be some 70 MiB.
    assert memory[0] < 32 * MIB


def test_ten_sparse_tebibytes_cost_a_few_operations_a_tebibyte(make_disk: MakeDisk, reader: Reader) -> None:
    disk = make_disk(size_bytes=10 * TIB)
    base = disk.snapshot("base")
    disk.write([(tebibyte * TIB + 5 * MIB, 512) for tebibyte in range(10)])
    target = disk.snapshot("target")
    with reader.rig.counter.counting() as count:
        found = ranges_of(reader.delta(base, target))
    assert [offset for offset, _ in found] == [tebibyte * TIB + 4 * MIB for tebibyte in range(10)]
    # A window is a quarter of a tebibyte, and has some ten operations.
    assert count.operations < 800


def test_with_the_cluster_hung_a_call_ends_and_works_afterwards(
    make_disk: MakeDisk, reader: Reader, blocks: ChangedBlocks, ceph: DevCluster
) -> None:
    disk = make_disk()
    target = disk.snapshot("target")
    secrets = disk.rig.secrets
    with blocks.allocated(target.snapshot_id, secrets, start=0):
        pass
    ceph.stop_osd()
    try:
        with (
            pytest.raises((BackendTimeout, BackendUnavailable)),
            blocks.allocated(target.snapshot_id, secrets, start=0),
        ):
            pass
        # The caller's own deadline ends it as well.
        assert refusal(lambda: reader.allocated(target, timeout=2.0))[0] == "DEADLINE_EXCEEDED"
    finally:
        ceph.resume_osd()
    assert ranges_of(reader.allocated(target)) == []


def _scribble_every_other_object(disk: Disk) -> None:
    """Have the object map at the newest snapshot say that every other object was written."""
    with rbd.Image(disk.ioctx, disk.image, read_only=True) as image:
        snapshot_id = max(one["id"] for one in image.list_snaps())
        name, count = f"rbd_object_map.{image.id()}.{snapshot_id:016x}", image.stat()["num_objs"]
    data = b"\x44" * (count // 4)
    blocks = len(data) // 4096
    # librbd marks a map invalid whose checksums are wrong, when it opens the snapshot.
    sums = struct.pack("<I", _crc32c(data[:4096])) * blocks
    disk.ioctx.write(name, data, 18)
    disk.ioctx.write(name, sums, 18 + len(data) + 12)


def _crc32c(data: bytes) -> int:
    """Return Ceph's checksum of a block, which begins with 0 and is not inverted."""
    found = 0
    for byte in data:
        found ^= byte
        for _ in range(8):
            found = found >> 1 ^ (0x82F63B78 if found & 1 else 0)
    return found


@contextmanager
def _memory() -> Iterator[list[int]]:
    """Measure how much the peak of this process's resident memory lies above where it was, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    found: list[int] = []
    yield found
    found.append(_resident("VmHWM") - before)


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * KIB
