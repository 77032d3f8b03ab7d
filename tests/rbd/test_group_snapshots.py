"""Group snapshots through the socket on a real cluster; with bindings that cannot clone one, that none is promised."""

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from csi_host.errors import CsiError, ResourceExhausted, Unavailable
from csi_host.proto import csi_pb2
from csi_host_rbd.ceph.groups import can_clone_group_snapshots
from csi_host_rbd.testing.pools import PoolView
from csi_host_rbd.testing.refusals import refusal
from csi_host_rbd.testing.rig import GIB, SECONDS, RbdRig, rbd_rig

pytestmark = pytest.mark.ceph
with_groups = pytest.mark.skipif(
    not can_clone_group_snapshots(), reason="this release of Ceph's bindings cannot clone group snapshots"
)

_MOST_STEPS = 60
_SECRET = "the class's own passphrase"


@dataclass
class Trouble:
    """At the step number ``at``, counted from 1, the cluster fails: before it, or with it done; 0 is never."""

    at: int = 0
    is_done: bool = False
    error: CsiError = field(default_factory=lambda: Unavailable("the cluster is gone"))
    steps: list[str] = field(default_factory=list)
    has_happened: bool = False

    def begin(self, *, at: int, is_done: bool = False, error: CsiError | None = None) -> None:
        self.at, self.is_done, self.error = at, is_done, error or Unavailable("the cluster is gone")
        self.has_happened = False
        self.steps.clear()

    def before(self, step: str) -> None:
        self.steps.append(step)
        self._fail(is_done=False)

    def after(self, step: str) -> None:  # noqa: ARG002 - the protocol's
        self._fail(is_done=True)

    def _fail(self, *, is_done: bool) -> None:
        if len(self.steps) == self.at and is_done == self.is_done:
            self.at, self.has_happened = 0, True
            raise self.error


@pytest.fixture
def trouble() -> Trouble:
    return Trouble()


@pytest.fixture
def rig(pool: PoolView, tmp_path: Path, trouble: Trouble) -> Iterator[RbdRig]:
    (tmp_path / "kms.json").write_text(json.dumps({"wrapping": {"encryptionKMSType": "metadata"}}))
    with rbd_rig(pool, tmp_path, observers=[trouble]) as one:
        one.secrets["encryptionPassphrase"] = _SECRET
        yield one


def _lockable(rig: RbdRig, name: str, **parameters: str) -> str:
    features = {"imageFeatures": "layering,exclusive-lock"}
    return rig.create(name, parameters=rig.parameters(**(features | parameters))).volume_id


def _take(rig: RbdRig, name: str, volume_ids: Sequence[str], **parameters: str) -> csi_pb2.VolumeGroupSnapshot:
    request = csi_pb2.CreateVolumeGroupSnapshotRequest(
        name=name, source_volume_ids=volume_ids, secrets=rig.secrets, parameters=parameters
    )
    return rig.served.group_controller.CreateVolumeGroupSnapshot(request, timeout=SECONDS).group_snapshot


def _get(rig: RbdRig, group_id: str, snapshot_ids: Sequence[str] = ()) -> csi_pb2.VolumeGroupSnapshot:
    request = csi_pb2.GetVolumeGroupSnapshotRequest(
        group_snapshot_id=group_id, snapshot_ids=snapshot_ids, secrets=rig.secrets
    )
    return rig.served.group_controller.GetVolumeGroupSnapshot(request, timeout=SECONDS).group_snapshot


def _delete(rig: RbdRig, group_id: str, snapshot_ids: Sequence[str] = ()) -> None:
    request = csi_pb2.DeleteVolumeGroupSnapshotRequest(
        group_snapshot_id=group_id, snapshot_ids=snapshot_ids, secrets=rig.secrets
    )
    rig.served.group_controller.DeleteVolumeGroupSnapshot(request, timeout=SECONDS)


def _code(call: Callable[[], object]) -> grpc.StatusCode:
    """Return the status that a call ends with."""
    try:
        call()
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def _ids(group: csi_pb2.VolumeGroupSnapshot) -> list[str]:
    return [one.snapshot_id for one in group.snapshots]


def _image(handle: str, prefix: str = "csi-vol-") -> str:
    return prefix + handle[-36:]


def _contents(rig: RbdRig, group: csi_pb2.VolumeGroupSnapshot) -> set[bytes]:
    return {rig.pool.read(_image(one, "csi-snap-"), 8) for one in _ids(group)}


def _assert_only_volumes_are_left(rig: RbdRig, volume_ids: Sequence[str]) -> None:
    assert rig.pool.images() == sorted(map(_image, volume_ids))
    assert not rig.pool.rbd("group", "ls").split()
    journal = rig.pool.journal()
    assert set(journal) <= {"csi.volumes.default", "csi.snaps.default", "csi.groups.default"} | {
        f"csi.volume.{handle[-36:]}" for handle in volume_ids
    }
    assert not journal.get("csi.groups.default")
    assert not journal.get("csi.snaps.default")
    for handle in volume_ids:
        # The manager may not have emptied the trash yet, and what is in it hangs on the volume.
        assert set(rig.pool.snapshots(_image(handle)).values()) <= {"trash"}


def test_the_service_is_promised_where_it_can_be_kept(rig: RbdRig) -> None:
    answer = rig.served.identity.GetPluginCapabilities(csi_pb2.GetPluginCapabilitiesRequest(), timeout=SECONDS)
    promised = {one.service.type for one in answer.capabilities}
    is_promised = csi_pb2.PluginCapability.Service.GROUP_CONTROLLER_SERVICE in promised
    assert is_promised == can_clone_group_snapshots()
    code = grpc.StatusCode.INVALID_ARGUMENT if is_promised else grpc.StatusCode.UNIMPLEMENTED
    assert refusal(lambda: _take(rig, "", []))[0] is code


@with_groups
def test_a_group_snapshot_has_the_layout_that_ceph_csi_reads_and_goes_as_a_whole(rig: RbdRig) -> None:
    volumes = sorted([_lockable(rig, "pvc-1"), _lockable(rig, "pvc-2")])
    group = _take(rig, "group-1", volumes, clusterID=rig.pool.cluster.cluster_id, pool=rig.pool.name)
    uuid = group.group_snapshot_id[-36:]
    journal = rig.pool.journal()
    assert journal["csi.groups.default"] == {"csi.volume.group.group-1": uuid}
    entry = journal[f"csi.volume.group.{uuid}"]
    assert entry.pop("csi.creationtime").endswith("Z")
    assert entry == {"csi.volname": "group-1", "csi.groupname": f"csi-vol-group-{uuid}"} | dict(
        zip(volumes, _ids(group), strict=True)
    )
    for volume, one in zip(volumes, group.snapshots, strict=True):
        image = _image(one.snapshot_id, "csi-snap-")
        assert (one.source_volume_id, one.group_snapshot_id, one.ready_to_use) == (
            volume,
            group.group_snapshot_id,
            True,
        )
        assert journal[f"csi.snap.{one.snapshot_id[-36:]}"]["csi.groupid"] == group.group_snapshot_id
        assert rig.pool.image(image)["parent"]["image"] == _image(volume)
        assert rig.pool.snapshots(image) == {image: "user"}
        assert list(rig.pool.snapshots(_image(volume)).values()) == ["trash"]
        listed = rig.served.controller.ListSnapshots(
            csi_pb2.ListSnapshotsRequest(snapshot_id=one.snapshot_id, secrets=rig.secrets), timeout=SECONDS
        )
        assert [entry.snapshot for entry in listed.entries] == [one]
    assert group.ready_to_use
    assert not rig.pool.rbd("group", "ls").split()
    assert _take(rig, "group-1", volumes[::-1]) == group == _get(rig, group.group_snapshot_id, _ids(group))
    restored = rig.restore(_ids(group)[0], "pvc-3").volume_id
    _delete(rig, group.group_snapshot_id, _ids(group))
    _delete(rig, group.group_snapshot_id, _ids(group))
    assert refusal(lambda: _get(rig, group.group_snapshot_id))[0] is grpc.StatusCode.NOT_FOUND
    _assert_only_volumes_are_left(rig, [*volumes, restored])


@with_groups
def test_nothing_is_written_between_the_snapshots_of_a_group(rig: RbdRig) -> None:
    volumes = [_lockable(rig, "pvc-1"), _lockable(rig, "pvc-2")]
    stop, is_writing = threading.Event(), threading.Event()

    def write() -> None:
        # The counter is in the first volume before it is in the second.
        with rig.pool.opened(_image(volumes[0])) as first, rig.pool.opened(_image(volumes[1])) as second:
            counter = 0
            while not stop.is_set():
                counter += 1
                for image in (first, second):
                    image.write(counter.to_bytes(8, "big"), 0)
                    image.flush()
                is_writing.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert is_writing.wait(SECONDS)
        groups = [_take(rig, f"group-{number}", volumes) for number in range(2)]
        alone = [rig.snapshot(volume, f"alone-{number}") for number, volume in enumerate(volumes)]
    finally:
        stop.set()
        writer.join()
    before = 0
    for group in groups:
        by_volume = {one.source_volume_id: one.snapshot_id for one in group.snapshots}
        restored = [rig.restore(by_volume[volume], f"of-{by_volume[volume]}") for volume in volumes]
        first, second = (int.from_bytes(rig.pool.read(_image(one.volume_id), 8), "big") for one in restored)
        assert 0 <= first - second <= 1
        assert first >= before
        before = first
    assert before > 0
    # The writer is fast enough to tell: it got on between two snapshots that were taken one after the other.
    first, second = (int.from_bytes(rig.pool.read(_image(one.snapshot_id, "csi-snap-"), 8), "big") for one in alone)
    assert before <= first < second


@with_groups
def test_a_creation_that_is_cut_off_at_any_step_is_finished_by_the_next_call(rig: RbdRig, trouble: Trouble) -> None:
    volumes = [_lockable(rig, "pvc-1"), _lockable(rig, "pvc-2")]
    cut_off = []
    for number in range(1, _MOST_STEPS):
        _write(rig, volumes, number)
        trouble.begin(at=number, is_done=True)
        code = _code(partial(_take, rig, f"group-{number}", volumes))
        assert code is (grpc.StatusCode.UNAVAILABLE if trouble.has_happened else grpc.StatusCode.OK)
        if not trouble.has_happened:
            break
        cut_off.append(trouble.steps[-1])
        _write(rig, volumes, number + 1000)
        trouble.begin(at=0)
        group = _take(rig, f"group-{number}", volumes)
        # Of one point in time, whichever call it was that took it.
        assert len(_contents(rig, group)) == 1, trouble.steps
        assert len(group.snapshots) == 2
        assert not rig.pool.rbd("group", "ls").split()
        _delete(rig, group.group_snapshot_id, _ids(group))
    assert any("taking the snapshot of group" in step for step in cut_off)
    assert "removing group" in cut_off[-1]
    trouble.begin(at=0)
    last = _take(rig, f"group-{number}", volumes)
    _delete(rig, last.group_snapshot_id)
    _assert_only_volumes_are_left(rig, volumes)


@with_groups
def test_a_creation_that_fails_for_good_at_any_step_leaves_nothing(rig: RbdRig, trouble: Trouble) -> None:
    volumes = [_lockable(rig, "pvc-1"), _lockable(rig, "pvc-2")]
    for number in range(1, _MOST_STEPS):
        trouble.begin(at=number, error=ResourceExhausted("the pool is full"))
        code = _code(partial(_take, rig, f"group-{number}", volumes))
        assert code is (grpc.StatusCode.RESOURCE_EXHAUSTED if trouble.has_happened else grpc.StatusCode.OK)
        if not trouble.has_happened:
            break
        _assert_only_volumes_are_left(rig, volumes)
    assert number > 10
    trouble.begin(at=0)
    _delete(rig, _take(rig, f"group-{number}", volumes).group_snapshot_id)


@with_groups
def test_a_deletion_that_is_cut_off_at_any_step_is_finished_by_the_next_call(rig: RbdRig, trouble: Trouble) -> None:
    volumes = [_lockable(rig, "pvc-1"), _lockable(rig, "pvc-2")]
    for number in range(1, _MOST_STEPS):
        group = _take(rig, "group-1", volumes)
        trouble.begin(at=number, is_done=True)
        code = _code(partial(_delete, rig, group.group_snapshot_id, _ids(group)))
        assert code is (grpc.StatusCode.UNAVAILABLE if trouble.has_happened else grpc.StatusCode.OK)
        if not trouble.has_happened:
            break
        trouble.begin(at=0)
        if number % 2:
            # The CO wants it again after all: another one, as this one is not whole any more.
            again = _take(rig, "group-1", volumes)
            assert set(_ids(again)).isdisjoint(_ids(group)) or again == group
            _delete(rig, again.group_snapshot_id, _ids(again))
        _delete(rig, group.group_snapshot_id, _ids(group))
        _assert_only_volumes_are_left(rig, volumes)
    assert number > 5
    _assert_only_volumes_are_left(rig, volumes)


@with_groups
def test_what_cannot_be_in_one_group_snapshot_is_refused(rig: RbdRig, whole_pool: PoolView) -> None:
    one, two = _lockable(rig, "pvc-1"), _lockable(rig, "pvc-2")
    plain = rig.create("pvc-3").volume_id
    rig.pool.cluster.rbd("namespace", "create", "--pool", whole_pool.name, "--namespace", rig.pool.namespace)
    elsewhere = _lockable(rig, "pvc-4", pool=whole_pool.name)
    journal = rig.pool.journal()
    for code, text, volumes in (
        (grpc.StatusCode.INVALID_ARGUMENT, r"source_volume_ids\[1\].*already", [one, one]),
        (grpc.StatusCode.FAILED_PRECONDITION, "exclusive-lock", [one, plain]),
        (grpc.StatusCode.FAILED_PRECONDITION, "only volumes of one pool", [one, elsewhere]),
        (grpc.StatusCode.NOT_FOUND, r"source_volume_ids\[1\]", [one, one[:-36] + "0" * 36]),
    ):
        with pytest.raises(grpc.RpcError, match=text) as refused:
            _take(rig, "group-1", volumes)
        assert refused.value.code() is code
    rig.pool.rbd("group", "create", "somebodys")
    place = f"{rig.pool.name}/{rig.pool.namespace}"
    rig.pool.cluster.rbd("group", "image", "add", f"{place}/somebodys", f"{place}/{_image(two)}")
    code, text = refusal(lambda: _take(rig, "group-1", [one, two]))
    assert (code, "'somebodys'" in text) == (grpc.StatusCode.FAILED_PRECONDITION, True)
    assert rig.pool.journal() == journal
    rig.pool.cluster.rbd("group", "image", "rm", f"{place}/somebodys", f"{place}/{_image(two)}")
    _take(rig, "group-1", [one, two])
    assert refusal(lambda: _take(rig, "group-1", [one]))[0] is grpc.StatusCode.ALREADY_EXISTS


@with_groups
def test_a_group_snapshot_is_not_taken_apart_and_not_taken_for_another(rig: RbdRig) -> None:
    volumes = [_lockable(rig, "pvc-1"), _lockable(rig, "pvc-2")]
    group = _take(rig, "group-1", volumes)
    part = _ids(group)[0]
    code, text = refusal(lambda: rig.delete_snapshot(part))
    assert (code, group.group_snapshot_id in text) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    assert refusal(lambda: _delete(rig, group.group_snapshot_id, [part]))[0] is grpc.StatusCode.INVALID_ARGUMENT
    assert refusal(lambda: _get(rig, group.group_snapshot_id, [part]))[0] is grpc.StatusCode.INVALID_ARGUMENT
    unknown = group.group_snapshot_id[:-36] + "0" * 36
    for handle in (unknown, "junk", part):
        assert refusal(partial(_get, rig, handle))[0] is grpc.StatusCode.NOT_FOUND
        _delete(rig, handle)
    rig.pool.rbd("group", "create", f"csi-vol-group-{unknown[-36:]}")
    rig.pool.create_object(f"csi.volume.group.{unknown[-36:]}")
    rig.pool.set_keys(f"csi.volume.group.{unknown[-36:]}", {"csi.volname": "a group of volumes", volumes[0]: ""})
    _delete(rig, unknown)
    assert rig.pool.rbd("group", "ls").split() == [f"csi-vol-group-{unknown[-36:]}"]
    assert _get(rig, group.group_snapshot_id) == group


@with_groups
@pytest.mark.parametrize("is_deleted", [False, True])
def test_a_group_that_was_left_behind_is_in_nobodys_way(rig: RbdRig, trouble: Trouble, is_deleted: bool) -> None:
    volumes = [_lockable(rig, "pvc-1"), _lockable(rig, "pvc-2")]
    trouble.begin(at=0)
    _delete(rig, _take(rig, "group-1", volumes).group_snapshot_id)
    at = next(number for number, step in enumerate(trouble.steps, 1) if "taking the snapshot of group" in step)
    trouble.begin(at=at, is_done=True)
    assert refusal(lambda: _take(rig, "group-2", volumes))[0] is grpc.StatusCode.UNAVAILABLE
    (group,) = rig.pool.rbd("group", "ls").split()
    assert group.endswith("-temp")
    if is_deleted:
        rig.delete(volumes[0])
        rig.pool.wait_until_trash_is_empty()
    else:
        _take(rig, "group-3", volumes)
    assert not rig.pool.rbd("group", "ls").split()


@dataclass
class Pause:
    """Waits before the snapshot of a group is taken, until it may go on."""

    is_there: threading.Event = field(default_factory=threading.Event)
    may_go_on: threading.Event = field(default_factory=threading.Event)

    def before(self, step: str) -> None:
        if "taking the snapshot of group" in step:
            self.is_there.set()
            assert self.may_go_on.wait(SECONDS)

    def after(self, step: str) -> None:
        """Go on."""


@with_groups
def test_the_volumes_of_a_group_snapshot_are_kept_from_other_controllers_for_as_long_as_it_is_made(
    pool: PoolView, tmp_path: Path
) -> None:
    options = {"lockbackend": "rados"}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    pause = Pause()
    with (
        rbd_rig(pool, tmp_path / "one", options=options, observers=[pause]) as one,
        rbd_rig(pool, tmp_path / "two", options=options) as two,
        ThreadPoolExecutor() as executor,
    ):
        volumes = [_lockable(one, f"pvc-{number}") for number in range(3)]
        taking = executor.submit(_take, one, "group-1", volumes[:2])
        try:
            assert pause.is_there.wait(SECONDS)
            for call in (
                partial(_take, two, "group-1", volumes[:2]),
                partial(_take, two, "group-2", volumes[1:]),
                partial(two.delete, volumes[0]),
                partial(two.expand, volumes[1], 2 * GIB),
            ):
                assert refusal(call)[0] is grpc.StatusCode.ABORTED
        finally:
            pause.may_go_on.set()
        group = taking.result()
        assert _take(two, "group-1", volumes[:2]) == group
        _delete(two, group.group_snapshot_id, _ids(group))
        _assert_only_volumes_are_left(one, volumes)


@with_groups
def test_parts_of_encrypted_volumes_open_with_the_passphrases_of_their_sources(rig: RbdRig) -> None:
    encrypted = {"encrypted": "true", "encryptionKMSID": "wrapping"}
    volumes = [_lockable(rig, f"pvc-{number}", **encrypted) for number in range(2)]
    for volume in volumes:
        rig.pool.rbd("image-meta", "set", _image(volume), "rbd.csi.ceph.com/encrypted", "encrypted")
    group = _take(rig, "group-1", volumes)
    for one in group.snapshots:
        source = _passphrase(rig, one.source_volume_id, "csi-vol-")
        assert _passphrase(rig, one.snapshot_id, "csi-snap-") == source
        restored = rig.restore(one.snapshot_id, f"of-{one.snapshot_id}", parameters=rig.parameters(**encrypted))
        assert _passphrase(rig, restored.volume_id, "csi-vol-") == source


def _passphrase(rig: RbdRig, handle: str, prefix: str) -> bytes:
    members = json.loads(rig.pool.metadata(_image(handle, prefix))["rbd.csi.ceph.com/dek"])
    sealed, nonce = (base64.b64decode(members[name]) for name in ("dek", "nonce"))
    key = hashlib.scrypt(_SECRET.encode(), salt=handle.encode(), n=32768, r=8, p=1, maxmem=2**26, dklen=32)
    return AESGCM(key).decrypt(nonce, sealed, None)


def _write(rig: RbdRig, volumes: Sequence[str], number: int) -> None:
    for volume in volumes:
        rig.pool.write(_image(volume), number.to_bytes(8, "big"))
