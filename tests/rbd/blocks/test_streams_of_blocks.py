"""Changed blocks, against what was written and what is read: streams over a real socket, from a real cluster."""

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from csi_host.proto import csi_pb2
from csi_host_rbd.devcluster import DevCluster
from csi_host_rbd.testing.disks import (
    FAST_DIFF,
    Disk,
    MakeDisk,
    Range,
    Reader,
    Taken,
    damage_map,
    differences,
    make_disk_on,
    opened_pool,
    random_ranges,
    ranges_of,
    refusal,
    remove_snapshot,
    uncovered,
    whole_objects,
)
from csi_host_rbd.testing.pools import PoolView
from csi_host_rbd.testing.rig import GIB, rbd_rig

pytestmark = pytest.mark.ceph

KIB = 1024
MIB = 1024**2
OBJECT = 4 * MIB
SMALL = 48 * MIB
SMALL_OBJECT = 64 * KIB
Features = tuple[str, ...]
# With object maps, and without any: found by the versions of the objects.
FEATURES = pytest.mark.parametrize("features", [FAST_DIFF, ("layering",)], ids=["fast-diff", "layering"])


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two snapshots of a volume that many tests only look at."""

    reader: Reader
    disk: Disk
    base: Taken
    target: Taken

    def streams(self) -> list[Callable[..., Any]]:
        """The two RPCs."""
        return [partial(self.reader.allocated, self.target), partial(self.reader.delta, self.base, self.target)]


@pytest.fixture(scope="module")
def pair(ceph: DevCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    pool = PoolView(cluster=ceph, name=ceph.pool).in_namespace(f"test-{uuid.uuid4().hex[:8]}")
    with rbd_rig(pool, tmp_path_factory.mktemp("pair")) as rig, opened_pool(rig) as ioctx:
        disk = make_disk_on(rig, ioctx, size_bytes=SMALL, objectSize=str(SMALL_OBJECT))
        disk.write(random_ranges(20, size_bytes=SMALL, count=20, most=64 * KIB))
        base = disk.snapshot("base")
        disk.write(random_ranges(21, size_bytes=SMALL, count=20, most=64 * KIB))
        yield Pair(reader=Reader(rig=rig), disk=disk, base=base, target=disk.snapshot("target"))


@pytest.fixture
def make_other(pair: Pair) -> Callable[[], Taken]:
    """A snapshot of another volume in the same place."""
    return lambda: make_disk_on(pair.disk.rig, pair.disk.ioctx, size_bytes=SMALL).snapshot("other")


def after(ranges: list[Range], start: int) -> list[Range]:
    """Return what of some ranges lies after an offset."""
    return [
        (max(offset, start), offset + length - max(offset, start))
        for offset, length in ranges
        if offset + length > start
    ]


@FEATURES
@pytest.mark.parametrize("seed", [1, 2])
def test_a_delta_has_every_written_byte_and_nothing_beyond_the_touched_objects(
    make_disk: MakeDisk, reader: Reader, features: Features, seed: int
) -> None:
    disk = make_disk(features=features)
    disk.write(random_ranges(seed, size_bytes=GIB, count=60, most=128 * KIB))
    base = disk.snapshot("base")
    disk.touched.clear()
    disk.write(random_ranges(seed + 100, size_bytes=GIB, count=40, most=128 * KIB), seed=seed)
    target = disk.snapshot("target")
    found = ranges_of(reader.delta(base, target))
    assert found == whole_objects(disk.touched, OBJECT)
    assert not uncovered(disk.touched, found)


@FEATURES
@pytest.mark.parametrize(
    ("seed", "striping"), [(3, {}), (4, {"stripeUnit": "16384", "stripeCount": "3"})], ids=["plain", "striped"]
)
def test_a_delta_has_every_byte_that_differs_whatever_was_written_discarded_and_snapshotted_in_between(
    make_disk: MakeDisk, reader: Reader, features: Features, striping: dict[str, str], seed: int
) -> None:
    disk = make_disk(size_bytes=SMALL, features=features, objectSize=str(SMALL_OBJECT), **striping)

    def work(round_: int) -> None:
        disk.write(random_ranges(seed + 10 * round_, size_bytes=SMALL, count=50, most=100 * KIB), seed=seed + round_)
        disk.discard(random_ranges(seed + 10 * round_ + 5, size_bytes=SMALL, count=25, most=300 * KIB))

    work(0)
    base = disk.snapshot("base")
    disk.touched.clear()
    work(1)
    between = disk.snapshot("between")
    work(2)
    target = disk.snapshot("target")
    disk.write([(0, MIB)], seed=99)
    differing = differences(disk, base, target)
    assert differing
    found = ranges_of(reader.delta(base, target))
    # What was written before a snapshot that is removed is then found at the next one.
    remove_snapshot(disk, between)
    for ranges in (found, ranges_of(reader.delta(base, target))):
        assert not uncovered(differing, ranges)
        if not striping:
            assert not uncovered(ranges, whole_objects(disk.touched, SMALL_OBJECT))
    assert not uncovered(differences(disk, base, target, with_nothing=True), ranges_of(reader.allocated(target)))


def test_with_fast_diff_the_maps_are_read_and_not_the_objects(make_disk: MakeDisk, reader: Reader) -> None:
    disk = make_disk()
    disk.write(random_ranges(5, size_bytes=GIB, count=200, most=4 * KIB))
    base, target = disk.snapshot("base"), disk.snapshot("target")
    list(reader.delta(base, target))
    with reader.rig.counter.counting() as count:
        assert ranges_of(reader.delta(base, target)) == []
    # The journal, the headers and two openings; a stat of every object would be 512.
    assert count.operations < 60
    with reader.rig.counter.counting() as count:
        assert len(ranges_of(reader.allocated(target))) > 50
    assert count.operations < 60


@FEATURES
def test_a_stream_that_is_resumed_anywhere_gives_the_same_bytes(
    make_disk: MakeDisk, reader: Reader, features: Features
) -> None:
    disk = make_disk(size_bytes=SMALL, features=features, objectSize=str(SMALL_OBJECT))
    base = disk.snapshot("base")
    disk.write(random_ranges(6, size_bytes=SMALL, count=60, most=64 * KIB))
    target = disk.snapshot("target")
    for stream in (lambda **changes: reader.delta(base, target, **changes), partial(reader.allocated, target)):
        whole = ranges_of(stream())
        assert len(whole) > 20
        offsets = [offset + length for offset, length in whole] + [SMALL]
        # The odd ones lie within a range or between two.
        offsets += [offset // 3 for offset in offsets] + [offset + 1 for offset, _ in whole]
        for start in offsets[::20] + offsets[-3:]:
            assert ranges_of(stream(starting_offset=start)) == after(whole, start), start


def test_messages_have_the_size_the_kind_and_no_more_tuples_than_asked_for(pair: Pair) -> None:
    for stream in pair.streams():
        whole = ranges_of(stream())
        assert len(whole) > 10
        for most in (1, 7, len(whole), 2**31 - 1):
            messages = list(stream(max_results=most))
            assert ranges_of(iter(messages)) == whole
            assert all(len(message.block_metadata) <= most for message in messages)
        assert {message.volume_capacity_bytes for message in messages} == {SMALL}
        assert {message.block_metadata_type for message in messages} == {csi_pb2.VARIABLE_LENGTH}


def test_an_offset_at_the_end_gives_nothing_and_beyond_it_is_out_of_range(pair: Pair) -> None:
    for stream in pair.streams():
        (message,) = stream(starting_offset=SMALL)
        assert (message.volume_capacity_bytes, list(message.block_metadata)) == (SMALL, [])
        for offset in (SMALL + 1, 2**62, -1):
            assert refusal(partial(stream, starting_offset=offset))[0] == "OUT_OF_RANGE"


def test_snapshots_that_do_not_go_together_are_refused(pair: Pair, make_other: Callable[[], Taken]) -> None:
    delta = pair.reader.delta
    other = make_other()
    for older, newer, words in (
        (pair.target, pair.base, "taken after"),
        (pair.base, pair.base, "another snapshot"),
        (pair.base, other, "same volume"),
    ):
        code, text = refusal(partial(delta, older, newer))
        assert code == "INVALID_ARGUMENT"
        assert words in text


def test_what_is_no_snapshot_is_not_found(pair: Pair) -> None:
    gone = pair.base.snapshot_id[:-36] + str(uuid.uuid4())
    for unknown in (
        gone,
        pair.disk.volume_id,
        "nonsense",
        gone.replace("0001-0003", "0001-0fff"),
    ):
        allocated = partial(pair.reader.allocated, pair.base, snapshot_id=unknown)
        base = partial(pair.reader.delta, pair.base, pair.target, base_snapshot_id=unknown)
        target = partial(pair.reader.delta, pair.base, pair.target, target_snapshot_id=unknown)
        for field, stream in (("snapshot_id", allocated), ("base_snapshot_id", base), ("target_snapshot_id", target)):
            code, text = refusal(stream)
            assert code == "NOT_FOUND"
            assert text.startswith(field + ":")


def test_half_a_secret_is_refused_and_without_any_the_drivers_own_is_used(pair: Pair) -> None:
    for stream in pair.streams():
        code, text = refusal(partial(stream, secrets={"userID": "csi"}))
        assert (code, "userKey" in text) == ("INVALID_ARGUMENT", True)
        assert ranges_of(stream(secrets={})) == ranges_of(stream())


@FEATURES
def test_a_volume_in_the_trash_still_tells(make_disk: MakeDisk, reader: Reader, features: Features) -> None:
    disk = make_disk(features=features)
    base = disk.snapshot("base")
    disk.write([(5 * OBJECT, 10), (100 * OBJECT, OBJECT)])
    target = disk.snapshot("target")
    before = [ranges_of(reader.delta(base, target)), ranges_of(reader.allocated(target))]
    reader.rig.delete(disk.volume_id)
    assert disk.image not in reader.rig.pool.images()
    assert [ranges_of(reader.delta(base, target)), ranges_of(reader.allocated(target))] == before
    assert before[0] == whole_objects(disk.touched, OBJECT)


@pytest.mark.parametrize("flattened", ["base", "target"])
def test_a_flattened_snapshot_gives_all_that_either_has(make_disk: MakeDisk, reader: Reader, flattened: str) -> None:
    disk = make_disk(size_bytes=SMALL, objectSize=str(SMALL_OBJECT))
    disk.write(random_ranges(7, size_bytes=SMALL, count=20, most=64 * KIB))
    snapshots = {"base": disk.snapshot("base")}
    disk.discard(disk.touched[:5])
    disk.write(random_ranges(8, size_bytes=SMALL, count=20, most=64 * KIB))
    snapshots["target"] = disk.snapshot("target")
    reader.rig.pool.rbd("flatten", snapshots[flattened].image)
    found = ranges_of(reader.delta(snapshots["base"], snapshots["target"]))
    assert not uncovered(differences(disk, snapshots["base"], snapshots["target"]), found)
    assert not uncovered(found, whole_objects(disk.touched, SMALL_OBJECT))
    allocated = ranges_of(reader.allocated(snapshots[flattened]))
    assert not uncovered(differences(disk, snapshots["base"], snapshots[flattened], with_nothing=True), allocated)
    # In whichever order they are asked for, no clock or number may be misread as "older".
    if flattened == "base":
        assert refusal(partial(reader.delta, snapshots["target"], snapshots["base"]))[0] == "INVALID_ARGUMENT"


@FEATURES
def test_a_volume_that_changed_its_size_tells_of_the_targets_size(
    make_disk: MakeDisk, reader: Reader, features: Features
) -> None:
    disk = make_disk(size_bytes=SMALL, features=features, objectSize=str(SMALL_OBJECT))
    disk.write([(0, SMALL)])
    first = disk.snapshot("first")
    disk.resize(3 * SMALL)
    disk.write([(2 * SMALL + 5, 10)])
    second = disk.snapshot("second")
    disk.resize(SMALL // 2)
    disk.resize(SMALL)
    third = disk.snapshot("third")
    grown = list(reader.delta(first, second))
    assert {message.volume_capacity_bytes for message in grown} == {3 * SMALL}
    assert ranges_of(iter(grown)) == [(2 * SMALL, SMALL_OBJECT)]
    shrunk = list(reader.delta(second, third))
    assert {message.volume_capacity_bytes for message in shrunk} == {SMALL}
    assert ranges_of(iter(shrunk)) == [(SMALL // 2, SMALL // 2)]
    assert ranges_of(reader.delta(first, third)) == [(SMALL // 2, SMALL // 2)]


@FEATURES
def test_what_a_restored_volume_has_of_its_source_is_allocated_and_its_changes_are_its_own(
    make_disk: MakeDisk, reader: Reader, features: Features
) -> None:
    source = make_disk(size_bytes=SMALL, features=features, objectSize=str(SMALL_OBJECT))
    source.write(random_ranges(9, size_bytes=SMALL, count=20, most=64 * KIB))
    disk = source.restored(source.snapshot("source"))
    base = disk.snapshot("base")
    disk.write(random_ranges(10, size_bytes=SMALL, count=10, most=64 * KIB))
    disk.discard(source.touched[:3])
    target = disk.snapshot("target")
    found = ranges_of(reader.delta(base, target))
    assert not uncovered(differences(disk, base, target), found)
    assert not uncovered(found, whole_objects(disk.touched, SMALL_OBJECT))
    for snapshot in (base, target):
        content = differences(disk, base, snapshot, with_nothing=True)
        assert content
        assert not uncovered(content, ranges_of(reader.allocated(snapshot)))


@FEATURES
def test_a_volume_that_lost_its_source_in_between_tells_of_all_that_is_no_longer_there(
    make_disk: MakeDisk, reader: Reader, features: Features
) -> None:
    source = make_disk(size_bytes=SMALL, features=features, objectSize=str(SMALL_OBJECT))
    source.write(random_ranges(11, size_bytes=SMALL, count=20, most=64 * KIB))
    disk = source.restored(source.snapshot("source"))
    base = disk.snapshot("base")
    # The source no longer shows through beyond this size, and no object of the volume's own says so.
    disk.resize(SMALL // 2)
    disk.resize(SMALL)
    target = disk.snapshot("target")
    reader.rig.pool.rbd("flatten", disk.image)
    after_flattening = disk.snapshot("after")
    for newer in (target, after_flattening):
        differing = differences(disk, base, newer)
        assert differing
        assert not uncovered(differing, ranges_of(reader.delta(base, newer)))


@pytest.mark.parametrize("damage", ["removed", "invalid", "cut short", "scribbled"])
def test_object_maps_that_cannot_be_trusted_are_not(make_disk: MakeDisk, reader: Reader, damage: str) -> None:
    disk = make_disk(size_bytes=SMALL, objectSize=str(SMALL_OBJECT))
    disk.write(random_ranges(12, size_bytes=SMALL, count=30, most=4 * KIB))
    base = disk.snapshot("base")
    disk.touched.clear()
    disk.write(random_ranges(13, size_bytes=SMALL, count=30, most=4 * KIB))
    target = disk.snapshot("target")
    damage_map(disk, damage)
    assert ranges_of(reader.delta(base, target)) == whole_objects(disk.touched, SMALL_OBJECT)
    with_data = differences(disk, base, target, with_nothing=True)
    assert not uncovered(with_data, ranges_of(reader.allocated(target)))


def test_what_ceph_csi_took_is_as_good(make_disk: MakeDisk, reader: Reader) -> None:
    disk = make_disk()
    disk.write([(9 * OBJECT, 512)])
    base = disk.ceph_csi_snapshot("base")
    disk.touched.clear()
    disk.write(random_ranges(14, size_bytes=GIB, count=10, most=4 * KIB))
    target = disk.ceph_csi_snapshot("target")
    assert ranges_of(reader.delta(base, target)) == whole_objects(disk.touched, OBJECT)
    everything = whole_objects([*disk.touched, (9 * OBJECT, 512)], OBJECT)
    assert ranges_of(reader.allocated(target)) == everything


def test_the_data_may_be_in_another_pool(make_disk: MakeDisk, reader: Reader, whole_pool: PoolView) -> None:
    disk = make_disk(features=("layering",), dataPool=whole_pool.name)
    base = disk.snapshot("base")
    disk.write(random_ranges(15, size_bytes=GIB, count=10, most=4 * KIB))
    target = disk.snapshot("target")
    assert ranges_of(reader.delta(base, target)) == whole_objects(disk.touched, OBJECT)
    assert not uncovered(disk.touched, ranges_of(reader.allocated(target)))


def test_the_blocks_of_an_encrypted_volume_are_not_told_as_the_volumes(make_disk: MakeDisk, reader: Reader) -> None:
    disk = make_disk()
    base, target = disk.snapshot("base"), disk.snapshot("target")
    reader.rig.pool.set_key(f"csi.snap.{target.snapshot_id[-36:]}", "csi.volume.encryptKMS", "kms")
    for stream in (partial(reader.allocated, target), partial(reader.delta, base, target)):
        code, text = refusal(stream)
        assert code == "FAILED_PRECONDITION"
        assert "full backup" in text


def test_the_plugin_says_that_it_has_the_service(reader: Reader) -> None:
    answer = reader.rig.served.identity.GetPluginCapabilities(csi_pb2.GetPluginCapabilitiesRequest())
    service = csi_pb2.PluginCapability.Service.SNAPSHOT_METADATA_SERVICE
    assert service in {capability.service.type for capability in answer.capabilities}
