"""ListVolumes and ListSnapshots on a real cluster, entry by entry and page by page."""

import json
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from csi_host.proto import csi_pb2
from csi_host_rbd.conditions import Condition
from csi_host_rbd.devcluster import DevCluster
from csi_host_rbd.listed_volumes import SeenVolume
from csi_host_rbd.listing import MOST_ENTRIES
from csi_host_rbd.messages import volume_entry
from csi_host_rbd.testing.ceph_csi import make_snapshot, make_volume, trash_image
from csi_host_rbd.testing.clusters import own_cluster
from csi_host_rbd.testing.pools import PoolView
from csi_host_rbd.testing.refusals import refusal
from csi_host_rbd.testing.rig import GIB, SECONDS, RbdRig, rbd_rig

pytestmark = pytest.mark.ceph


@pytest.fixture(scope="module")
def ceph() -> Iterator[DevCluster]:
    """A cluster of these tests' own: they look at all of it, whatever others have left there."""
    with own_cluster() as cluster:
        yield cluster


_ENTRIES = 20_000


def _volumes(rig: RbdRig, **fields: object) -> csi_pb2.ListVolumesResponse:
    return rig.served.controller.ListVolumes(csi_pb2.ListVolumesRequest(**fields), timeout=SECONDS)  # type: ignore[arg-type] # by name


def _snapshots(rig: RbdRig, **fields: object) -> csi_pb2.ListSnapshotsResponse:
    return rig.served.controller.ListSnapshots(csi_pb2.ListSnapshotsRequest(**fields), timeout=SECONDS)  # type: ignore[arg-type] # by name


def _pages(rig: RbdRig, max_entries: int) -> Iterator[list[str]]:
    token = ""
    while True:
        page = _volumes(rig, max_entries=max_entries, starting_token=token)
        yield [entry.volume.volume_id for entry in page.entries]
        token = page.next_token
        if not token:
            return


def _ids(response: csi_pb2.ListVolumesResponse) -> list[str]:
    return [entry.volume.volume_id for entry in response.entries]


def _conditions(rig: RbdRig) -> dict[str, tuple[bool, str]]:
    return {
        entry.volume.volume_id: (entry.status.volume_condition.abnormal, entry.status.volume_condition.message)
        for entry in _volumes(rig).entries
    }


def test_an_empty_cluster_has_an_empty_list(rig: RbdRig) -> None:
    assert _volumes(rig) == csi_pb2.ListVolumesResponse()
    assert _snapshots(rig, secrets=rig.secrets) == csi_pb2.ListSnapshotsResponse()


def test_what_was_made_is_listed_in_one_reply_and_what_was_deleted_is_not(rig: RbdRig) -> None:
    made = {rig.create(f"pvc-{number}").volume_id for number in range(3)}
    listed = _volumes(rig)
    assert set(_ids(listed)) == made
    assert listed.next_token == ""
    assert {entry.volume.capacity_bytes for entry in listed.entries} == {GIB}
    assert not any(entry.status.volume_condition.abnormal for entry in listed.entries)
    assert all(entry.status.volume_condition.message for entry in listed.entries)
    gone = made.pop()
    rig.delete(gone)
    assert set(_ids(_volumes(rig))) == made


def test_volumes_of_ceph_csi_are_listed_also_before_their_images_id_is_stored(rig: RbdRig) -> None:
    whole = make_volume(rig.pool, "pvc-whole", size="2G")
    without_id = make_volume(rig.pool, "pvc-without-id", steps=4)
    sizes = {entry.volume.volume_id: entry.volume.capacity_bytes for entry in _volumes(rig).entries}
    assert sizes == {whole.volume_id: 2 * GIB, without_id.volume_id: GIB}


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_what_is_only_just_being_made_is_no_volume_yet(rig: RbdRig, steps: int) -> None:
    make_volume(rig.pool, "pvc-1", steps=steps)
    assert _ids(_volumes(rig)) == []


def test_a_volume_whose_image_is_gone_is_listed_as_abnormal_and_the_others_as_they_are(rig: RbdRig) -> None:
    well, lost, trashed = (make_volume(rig.pool, f"pvc-{name}") for name in ("well", "lost", "trashed"))
    rig.pool.rbd("rm", lost.image)
    trash_image(trashed)
    conditions = _conditions(rig)
    assert conditions.keys() == {well.volume_id, lost.volume_id, trashed.volume_id}
    assert conditions[well.volume_id][0] is False
    assert conditions[lost.volume_id] == (
        True,
        f"the image {rig.pool.name}/{rig.pool.namespace}/{lost.image} does not exist",
    )
    assert conditions[trashed.volume_id] == (True, "the image is in the trash")


def test_an_entry_that_leads_nowhere_is_skipped(rig: RbdRig) -> None:
    volume = make_volume(rig.pool, "pvc-m")
    other = str(uuid.uuid4())
    stale = {
        "csi.volume.pvc-a": str(uuid.uuid4()),
        "csi.volume.pvc-b": "junk",
        "csi.volume.pvc-c": f"{2**40:016x}/{other}",
        "csi.volume.pvc-d": f"zz/{other}",
        "csi.volume.pvc-e": volume.uuid,
        f"csi.volume.{volume.volume_id}": volume.volume_id,
        "csi.volume.": "",
        "other.key": volume.uuid,
    }
    for key, value in stale.items():
        rig.pool.set_key("csi.volumes.default", key, value)
    assert _ids(_volumes(rig)) == [volume.volume_id]
    assert rig.pool.keys("csi.volumes.default").keys() >= stale.keys()


def test_a_volume_whose_image_is_in_another_pool_than_its_name_is_listed_by_the_pool_of_its_image(
    whole_pool: PoolView, tmp_path: Path
) -> None:
    # As ceph-csi 3.0 to 3.10 kept it in topology mode: the object in the image's pool is empty.
    images = PoolView(cluster=whole_pool.cluster, name=whole_pool.cluster.pool)
    volume = make_volume(images, "pvc-1")
    entry = f"csi.volume.{volume.uuid}"
    for key, value in images.keys(entry).items():
        whole_pool.set_key(entry, key, value)
    images.remove_keys(entry)
    images.remove_object("csi.volumes.default")
    whole_pool.set_key("csi.volumes.default", "csi.volume.pvc-1", f"{images.id():016x}/{volume.uuid}")
    with rbd_rig(whole_pool, tmp_path) as rig:
        (listed,) = _volumes(rig).entries
        assert listed.volume.volume_id == volume.volume_id
        assert not listed.status.volume_condition.abnormal
    images.rbd("rm", volume.image)
    images.remove_object(entry)


def test_an_image_made_anew_under_its_name_is_found_though_the_journal_has_the_old_id(rig: RbdRig) -> None:
    volume = make_volume(rig.pool, "pvc-1")
    rig.pool.set_key(f"csi.volume.{volume.uuid}", "csi.imageid", "123456")
    assert _conditions(rig)[volume.volume_id][0] is False


def test_pages_hold_what_is_asked_for_and_together_everything_once(rig: RbdRig) -> None:
    made = {rig.create(f"pvc-{number}").volume_id for number in range(5)}
    pages = list(_pages(rig, 2))
    assert [len(page) for page in pages] == [2, 2, 1]
    assert {one for page in pages for one in page} == made
    assert [len(page) for page in _pages(rig, 5)] == [5]


def test_a_list_goes_on_rightly_while_volumes_come_and_go(rig: RbdRig) -> None:
    volumes = {name: rig.create(f"pvc-{name}") for name in "bdfh"}
    first = _volumes(rig, max_entries=2)
    assert _ids(first) == [volumes["b"].volume_id, volumes["d"].volume_id]
    # The entry that the token names goes, and others come before and behind it.
    rig.delete(volumes["d"].volume_id)
    before, behind = (rig.create(f"pvc-{name}") for name in "ae")
    second = _volumes(rig, starting_token=first.next_token)
    assert _ids(second) == [behind.volume_id, volumes["f"].volume_id, volumes["h"].volume_id]
    assert before.volume_id not in _ids(second)


def test_names_of_128_bytes_with_the_same_beginning_are_paged_as_exactly(rig: RbdRig) -> None:
    made = [rig.create("n" * 127 + last) for last in "abcd"]
    assert [ids for page in _pages(rig, 1) for ids in page] == [one.volume_id for one in made]
    first = _volumes(rig, max_entries=2)
    assert len(first.next_token.encode()) <= 128
    # Nothing is missed when the very entry goes that a cut name leads to; entries may come twice.
    rig.delete(made[1].volume_id)
    assert set(_ids(_volumes(rig, starting_token=first.next_token))) >= {made[2].volume_id, made[3].volume_id}


@pytest.mark.parametrize("token", ["invalid-token", "1.v.00000000.3..pvc-1", "1.s.00000000.3..pvc-1"])
def test_a_token_that_is_none_or_of_a_cluster_that_is_gone_is_aborted(rig: RbdRig, token: str) -> None:
    code, message = refusal(lambda: _volumes(rig, starting_token=token))
    assert code is grpc.StatusCode.ABORTED
    assert "starting_token" in message


def test_all_clusters_of_the_configuration_and_all_their_pools_are_listed_in_one_order(
    pool: PoolView, whole_pool: PoolView, tmp_path: Path
) -> None:
    entries = [
        {"clusterID": name, "monitors": pool.cluster.monitors, "rbd": {"radosNamespace": namespace}}
        for name, namespace in (("one", pool.namespace), ("two", ""))
    ]
    config = tmp_path / "clusters.json"
    config.write_text(json.dumps(entries), encoding="utf-8")
    first, second = make_volume(pool, "pvc-b"), make_volume(whole_pool, "pvc-a")
    with rbd_rig(pool, tmp_path, options={"cephcsiconfig": config}) as rig:
        pages = list(_pages(rig, 1))
        assert [[one[5:14] + one[-36:] for one in page] for page in pages] == [
            [f"0003-one-{first.uuid}"], [f"0003-two-{second.uuid}"]
        ]  # fmt: skip
        rig.delete(pages[0][0])
        rig.delete(pages[1][0])
        assert list(_pages(rig, 1)) == [[]]


def test_a_pool_that_is_deleted_between_two_pages_does_not_stop_the_list(rig: RbdRig, tmp_path: Path) -> None:
    cluster = rig.pool.cluster
    pools = [PoolView(cluster=cluster, name=f"test-{uuid.uuid4().hex[:8]}") for _ in range(2)]
    for pool in pools:
        cluster.create_pool(pool.name)
    gone, stays = (make_volume(pool, f"pvc-{number}") for number, pool in enumerate(pools))
    config = tmp_path / "clusters.json"
    config.write_text(json.dumps([{"clusterID": "dev", "monitors": cluster.monitors}]), encoding="utf-8")
    with rbd_rig(pools[0], tmp_path, options={"cephcsiconfig": config}) as whole:
        first = _volumes(whole, max_entries=1)
        assert _ids(first) == [gone.volume_id]
        cluster.delete_pool(pools[0].name)
        assert _ids(_volumes(whole, starting_token=first.next_token)) == [stays.volume_id]
    cluster.delete_pool(pools[1].name)


def test_another_installations_volumes_are_not_listed(pool: PoolView, tmp_path: Path) -> None:
    make_volume(pool, "pvc-1")
    with rbd_rig(pool, tmp_path, instance_id="other") as rig:
        made = rig.create("pvc-1").volume_id
        assert _ids(_volumes(rig)) == [made]


def test_a_pool_that_the_user_may_not_read_is_passed_over(pool: PoolView, tmp_path: Path) -> None:
    volume = make_volume(pool, "pvc-1")
    name = f"reader-{uuid.uuid4().hex[:8]}"
    allowed = f"profile rbd pool={pool.name} namespace={pool.namespace}"
    key = pool.cluster.ceph("auth", "get-or-create-key", f"client.{name}", "mon", "profile rbd", "osd", allowed).strip()
    secret = tmp_path / "secret.json"
    secret.write_text(json.dumps({"userID": name, "userKey": key}), encoding="utf-8")
    other = PoolView(cluster=pool.cluster, name=f"test-{uuid.uuid4().hex[:8]}", namespace=pool.namespace)
    pool.cluster.create_pool(other.name)
    with rbd_rig(pool, tmp_path, options={"controllersecret": secret}) as rig:
        assert _ids(_volumes(rig)) == [volume.volume_id]
    pool.cluster.delete_pool(other.name)
    pool.cluster.ceph("auth", "rm", f"client.{name}")


def test_snapshots_are_listed_with_their_source_size_and_time(rig: RbdRig) -> None:
    volume = make_volume(rig.pool, "pvc-1", size="2G")
    snapshot = make_snapshot(volume, "snapshot-1")
    (entry,) = _snapshots(rig, secrets=rig.secrets).entries
    assert entry.snapshot.snapshot_id == snapshot.snapshot_id
    assert entry.snapshot.source_volume_id == volume.volume_id
    assert entry.snapshot.size_bytes == 2 * GIB
    assert entry.snapshot.ready_to_use
    created = rig.pool.image(snapshot.image)["create_timestamp"]
    assert entry.snapshot.creation_time.ToDatetime().strftime("%c") == created
    asked = csi_pb2.GetSnapshotRequest(snapshot_id=snapshot.snapshot_id, secrets=rig.secrets)
    assert rig.served.controller.GetSnapshot(asked, timeout=SECONDS).snapshot == entry.snapshot


def _snapshots_of(rig: RbdRig, *volumes: csi_pb2.Volume, number: int) -> list[csi_pb2.Snapshot]:
    """Take snapshots of the volumes in turn; at once, as the monitors take a second for each."""
    with ThreadPoolExecutor() as executor:
        taken = [
            executor.submit(rig.snapshot, volumes[one % len(volumes)].volume_id, f"snapshot-{one}")
            for one in range(number)
        ]
        return [one.result() for one in taken]


def test_what_create_snapshot_answers_is_what_is_listed_and_got(rig: RbdRig) -> None:
    (snapshot,) = _snapshots_of(rig, rig.create("pvc-1"), number=1)
    (entry,) = _snapshots(rig).entries
    asked = csi_pb2.GetSnapshotRequest(snapshot_id=snapshot.snapshot_id)
    assert entry.snapshot == rig.served.controller.GetSnapshot(asked, timeout=SECONDS).snapshot
    # librbd tells the time of creation in whole seconds.
    assert entry.snapshot.creation_time.seconds == snapshot.creation_time.seconds
    entry.snapshot.creation_time.nanos = snapshot.creation_time.nanos
    assert entry.snapshot == snapshot


def test_snapshots_are_found_by_id_and_by_source_page_by_page(rig: RbdRig) -> None:
    volumes = [rig.create(f"pvc-{number}") for number in range(2)]
    sources = [one.volume_id for one in volumes]
    made = [one.snapshot_id for one in _snapshots_of(rig, *volumes, number=5)]

    def listed(**fields: object) -> list[str]:
        return [entry.snapshot.snapshot_id for entry in _snapshots(rig, **fields).entries]

    assert listed() == made
    assert listed(snapshot_id=made[1]) == [made[1]]
    assert listed(source_volume_id=sources[0]) == [made[0], made[2], made[4]]
    assert listed(snapshot_id=made[1], source_volume_id=sources[1]) == [made[1]]
    assert listed(snapshot_id=made[1], source_volume_id=sources[0]) == []
    first = _snapshots(rig, source_volume_id=sources[0], max_entries=2)
    assert [entry.snapshot.snapshot_id for entry in first.entries] == [made[0], made[2]]
    rest = _snapshots(rig, source_volume_id=sources[0], starting_token=first.next_token)
    assert [entry.snapshot.snapshot_id for entry in rest.entries] == [made[4]]
    assert rest.next_token == ""
    # Snapshots stay when their source goes, and so does the way to them.
    assert listed(source_volume_id=sources[1]) == [made[1], made[3]]


@pytest.mark.parametrize("field", ["snapshot_id", "source_volume_id"])
def test_an_unknown_id_or_source_is_an_empty_list(rig: RbdRig, field: str) -> None:
    volume = make_volume(rig.pool, "pvc-1")
    make_snapshot(volume, "snapshot-1")
    other = f"{volume.volume_id[:-36]}{uuid.uuid4()}"
    elsewhere = volume.volume_id.replace("-dev-", "-non-")
    no_pool = f"0001-0003-dev-{2**40:016x}-{uuid.uuid4()}"
    for value in ("none-such", other, elsewhere, no_pool, *([volume.volume_id] if field == "snapshot_id" else [])):
        assert _snapshots(rig, **{field: value}) == csi_pb2.ListSnapshotsResponse(), value


def test_a_snapshot_that_was_cut_off_is_not_listed_and_not_found(rig: RbdRig) -> None:
    volume = make_volume(rig.pool, "pvc-1")
    for steps in (2, 3, 5, 7):
        snapshot = make_snapshot(volume, f"snapshot-{steps}", steps=steps)
        asked = csi_pb2.GetSnapshotRequest(snapshot_id=snapshot.snapshot_id)
        code, message = refusal(lambda asked=asked: rig.served.controller.GetSnapshot(asked, timeout=SECONDS))  # type: ignore[misc] # its default
        assert code is grpc.StatusCode.NOT_FOUND
        assert snapshot.snapshot_id in message
    assert list(_snapshots(rig).entries) == []


def test_a_snapshot_whose_image_is_in_the_trash_or_gone_is_not_listed(rig: RbdRig) -> None:
    ids = [one.snapshot_id for one in _snapshots_of(rig, rig.create("pvc-1"), number=3)]
    trashed, gone = (f"csi-snap-{one[-36:]}" for one in ids[:2])
    for image in (trashed, gone):
        rig.pool.rbd("snap", "rm", f"{image}@{image}")
    rig.pool.rbd("trash", "mv", trashed)
    rig.pool.rbd("rm", gone)
    assert [entry.snapshot.snapshot_id for entry in _snapshots(rig).entries] == ids[2:]


def test_a_snapshot_on_too_long_a_chain_is_listed_as_not_ready(pool: PoolView, tmp_path: Path) -> None:
    limits = {"rbdhardmaxclonedepth": 2, "rbdsoftmaxclonedepth": 2}
    with rbd_rig(pool, tmp_path) as rig:
        (snapshot,) = _snapshots_of(rig, rig.create("pvc-1"), number=1)
        assert [entry.snapshot.ready_to_use for entry in _snapshots(rig).entries] == [True]
    with rbd_rig(pool, tmp_path, options=limits) as strict:
        answers = [entry.snapshot for entry in _snapshots(strict).entries]
    assert [(one.snapshot_id, one.ready_to_use) for one in answers] == [(snapshot.snapshot_id, False)]


def test_a_cluster_that_does_not_answer_fails_the_page_instead_of_hiding_its_volumes(
    pool: PoolView, tmp_path: Path
) -> None:
    with rbd_rig(pool, tmp_path, options={"cephoptimeout": 2.0}) as rig:
        rig.create("pvc-1")
        _volumes(rig)
        pool.cluster.stop_osd()
        try:
            code, message = refusal(lambda: _volumes(rig))
        finally:
            pool.cluster.resume_osd()
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "did not answer" in message
    entries = [
        {"clusterID": "dev", "monitors": pool.cluster.monitors, "rbd": {"radosNamespace": pool.namespace}},
        {"clusterID": "lost", "monitors": ["127.0.0.1:1"]},
    ]
    config = tmp_path / "clusters.json"
    config.write_text(json.dumps(entries), encoding="utf-8")
    with rbd_rig(pool, tmp_path, options={"cephcsiconfig": config, "cephconnecttimeout": 2.0}) as rig:
        assert refusal(lambda: _volumes(rig))[0] is grpc.StatusCode.UNAVAILABLE
        assert len(_volumes(rig, max_entries=1).entries) == 1


@pytest.mark.timeout(600)
def test_a_page_costs_the_same_among_20000_entries_as_among_100(rig: RbdRig) -> None:
    made = make_volume(rig.pool, "zzz")
    _fill(rig.pool, 100)
    operations = {}
    for entries in (100, _ENTRIES):
        _fill(rig.pool, entries)
        _volumes(rig, max_entries=50)
        with rig.counter.counting() as count:
            page = _volumes(rig, max_entries=50)
        assert len(page.entries) == 50
        operations[entries] = count.operations
    # Names, the trash, mirroring, what follows; then the uuid's object, a missing header and a missing name each.
    assert operations[_ENTRIES] == operations[100]
    assert operations[_ENTRIES] <= 50 * 3 + 5
    last = _volumes(rig, starting_token=_volumes(rig, max_entries=50).next_token.replace("vol-00049", "vol-99999"))
    assert _ids(last) == [made.volume_id]


def _fill(pool: PoolView, entries: int) -> None:
    """Have so many volumes in the journal; their images are missing."""
    names = {f"vol-{number:05d}": str(uuid.UUID(int=number)) for number in range(entries)}
    batch = list(names.items())
    for begin in range(0, len(batch), 500):
        directory = {f"csi.volume.{name}": one for name, one in batch[begin : begin + 500]}
        pool.set_keys("csi.volumes.default", directory)
    for name, one in batch[:200]:
        pool.set_keys(f"csi.volume.{one}", {"csi.volname": name, "csi.imageid": one[-12:]})


def test_a_page_of_healthy_volumes_costs_two_operations_each(rig: RbdRig) -> None:
    for number in range(10):
        rig.create(f"pvc-{number}")
    _volumes(rig)
    with rig.counter.counting() as count:
        assert len(_volumes(rig, max_entries=9).entries) == 9
    assert count.operations <= 9 * 2 + 4


def test_no_page_is_bigger_than_what_a_sidecar_takes() -> None:
    longest = SeenVolume(
        volume_id="v" * 128, size_bytes=2**63 - 1, condition=Condition.of(["ä" * 400, "reason " * 1000])
    )
    page = csi_pb2.ListVolumesResponse(entries=[volume_entry(longest)] * MOST_ENTRIES, next_token="t" * 128)
    assert page.ByteSize() < 4 * 1024**2
