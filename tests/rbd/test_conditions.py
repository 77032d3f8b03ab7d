"""ControllerGetVolume on a real cluster: what is wrong with a volume, and what a look at it costs."""

import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from csi_host.proto import csi_pb2
from csi_host_rbd.ceph.mirroring import MirrorStatus, SiteStatus
from csi_host_rbd.conditions import causes_in
from csi_host_rbd.devcluster import DevCluster
from csi_host_rbd.testing.ceph_csi import make_volume, trash_image
from csi_host_rbd.testing.clusters import own_cluster
from csi_host_rbd.testing.pools import PoolView
from csi_host_rbd.testing.refusals import refusal
from csi_host_rbd.testing.rig import GIB, SECONDS, RbdRig, rbd_rig

_WELL = "the image is there and nothing is known to hinder its use"


@pytest.fixture(scope="module")
def ceph() -> Iterator[DevCluster]:
    """A cluster of these tests' own: they look at all of it, whatever others have left there."""
    with own_cluster() as cluster:
        yield cluster


def _get(rig: RbdRig, volume_id: str, timeout: float = SECONDS) -> csi_pb2.ControllerGetVolumeResponse:
    request = csi_pb2.ControllerGetVolumeRequest(volume_id=volume_id)
    return rig.served.controller.ControllerGetVolume(request, timeout=timeout)


def _condition(rig: RbdRig, volume_id: str) -> tuple[bool, str]:
    condition = _get(rig, volume_id).status.volume_condition
    (listed,) = rig.served.controller.ListVolumes(csi_pb2.ListVolumesRequest(), timeout=SECONDS).entries
    assert listed.status.volume_condition == condition
    return condition.abnormal, condition.message


@pytest.mark.ceph
def test_a_volume_that_is_well_says_so_and_costs_four_operations(rig: RbdRig) -> None:
    volume = rig.create("pvc-1")
    _get(rig, volume.volume_id)
    with rig.counter.counting() as count:
        seen = _get(rig, volume.volume_id)
    assert seen.volume == csi_pb2.Volume(volume_id=volume.volume_id, capacity_bytes=GIB)
    assert list(seen.status.published_node_ids) == []
    assert _condition(rig, volume.volume_id) == (False, _WELL)
    assert count.operations <= 4


@pytest.mark.ceph
def test_a_volume_in_use_is_well(rig: RbdRig) -> None:
    volume = rig.create("pvc-1")
    with rig.pool.watched(f"csi-vol-{volume.volume_id[-36:]}"):
        assert _condition(rig, volume.volume_id) == (False, _WELL)


@pytest.mark.ceph
def test_a_missing_image_is_a_condition_and_an_unknown_handle_is_not_found(rig: RbdRig) -> None:
    volume = make_volume(rig.pool, "pvc-1")
    rig.pool.rbd("rm", volume.image)
    is_abnormal, message = _condition(rig, volume.volume_id)
    assert is_abnormal
    assert message == f"the image {rig.pool.name}/{rig.pool.namespace}/{volume.image} does not exist"
    for handle in (f"{volume.volume_id[:-36]}{uuid.uuid4()}", "junk", f"0001-0003-dev-{2**40:016x}-{uuid.uuid4()}"):
        code, message = refusal(lambda handle=handle: _get(rig, handle))  # type: ignore[misc] # its default
        assert code is grpc.StatusCode.NOT_FOUND
        assert "volume_id" in message


@pytest.mark.ceph
def test_an_image_in_the_trash_is_told_with_those_who_keep_it_there(rig: RbdRig) -> None:
    volume = make_volume(rig.pool, "pvc-1")
    trash_image(volume)
    assert _condition(rig, volume.volume_id) == (True, "the image is in the trash")
    image_id = rig.pool.keys(f"csi.volume.{volume.uuid}")["csi.imageid"]
    with rig.pool.watched_in_trash(image_id):
        is_abnormal, message = _condition(rig, volume.volume_id)
    assert is_abnormal
    assert message.startswith("the image is in the trash, still open at client.")
    assert "127.0.0.1" in message


@pytest.mark.ceph
def test_a_mirrors_copy_is_abnormal_and_a_primary_is_well(whole_pool: PoolView, tmp_path: Path) -> None:
    with rbd_rig(whole_pool, tmp_path) as rig:
        volume = rig.create("pvc-1")
        image = f"csi-vol-{volume.volume_id[-36:]}"
        rig.pool.enable_mirroring(image)
        assert _condition(rig, volume.volume_id) == (False, _WELL)
        rig.pool.rbd("mirror", "image", "demote", image)
        is_abnormal, message = _condition(rig, volume.volume_id)
    assert is_abnormal
    assert message == (
        "the image is a mirror's copy, which cannot be written before it is promoted; "
        "no mirror daemon of this cluster brings the copy up to date"
    )


@pytest.mark.ceph
def test_when_ceph_hangs_that_is_the_condition_and_it_is_told_in_a_few_seconds(rig: RbdRig) -> None:
    volume = rig.create("pvc-1")
    _get(rig, volume.volume_id)
    cluster = rig.pool.cluster
    cluster.stop_osd()
    try:
        began = time.monotonic()
        seen = _get(rig, volume.volume_id)
        assert time.monotonic() - began < 20
    finally:
        cluster.resume_osd()
    assert seen.volume.volume_id == volume.volume_id
    assert seen.status.volume_condition.abnormal
    assert seen.status.volume_condition.message.startswith("Ceph does not answer")


@pytest.mark.ceph
def test_a_callers_own_deadline_is_kept_when_ceph_hangs(rig: RbdRig) -> None:
    volume = rig.create("pvc-1")
    _get(rig, volume.volume_id)
    cluster = rig.pool.cluster
    cluster.stop_osd()
    try:
        assert _get(rig, volume.volume_id, timeout=4.0).status.volume_condition.abnormal
    finally:
        cluster.resume_osd()


def _site(*, is_up: bool = True, has_failed: bool = False, description: str = "") -> SiteStatus:
    return SiteStatus(is_up=is_up, is_replaying=not has_failed, has_failed=has_failed, description=description)


def test_each_trouble_of_mirroring_is_a_sentence() -> None:
    copy = "the image is a mirror's copy, which cannot be written before it is promoted"
    parted = "its copies in the mirrored clusters have parted (split-brain): one has to be resynced"
    failed = _site(has_failed=True, description="failed to bootstrap")
    table = {
        MirrorStatus(is_primary=True, local=_site(is_up=False), remote=()): [],
        MirrorStatus(is_primary=True, local=_site(), remote=(_site(),)): [],
        MirrorStatus(is_primary=False, local=_site(), remote=()): [copy],
        MirrorStatus(is_primary=False, local=_site(is_up=False), remote=()): [
            copy,
            "no mirror daemon of this cluster brings the copy up to date",
        ],
        MirrorStatus(is_primary=True, local=_site(), remote=(failed,)): ["mirroring has failed: failed to bootstrap"],
        MirrorStatus(is_primary=False, local=_site(has_failed=True, description="split-brain detected"), remote=()): [
            copy,
            parted,
        ],
    }
    for status, causes in table.items():
        assert list(causes_in(status)) == causes


@pytest.mark.ceph
def test_a_driver_is_closed_while_a_look_still_hangs_without_pulling_the_connection_from_under_it(
    pool: PoolView, tmp_path: Path
) -> None:
    try:
        with rbd_rig(pool, tmp_path, options={"cephoptimeout": 4.0}) as rig:
            volume = rig.create("pvc-1")
            _get(rig, volume.volume_id)
            pool.cluster.stop_osd()
            assert _get(rig, volume.volume_id, timeout=2.0).status.volume_condition.abnormal
    finally:
        pool.cluster.resume_osd()


@pytest.mark.ceph
def test_an_image_whose_header_cannot_be_read_does_not_hide_the_others(rig: RbdRig) -> None:
    well, broken = (rig.create(f"pvc-{name}") for name in ("well", "broken"))
    image_id = rig.pool.keys(f"csi.volume.{broken.volume_id[-36:]}")["csi.imageid"]
    rig.pool.set_key(f"rbd_header.{image_id}", "size", "junk")
    conditions = {
        entry.volume.volume_id: entry.status.volume_condition
        for entry in rig.served.controller.ListVolumes(csi_pb2.ListVolumesRequest(), timeout=SECONDS).entries
    }
    assert not conditions[well.volume_id].abnormal
    assert conditions[broken.volume_id].abnormal
    assert conditions[broken.volume_id].message.startswith("the image cannot be read: ")


@pytest.mark.ceph
def test_a_volume_of_another_site_and_one_that_was_migrated_keep_the_handle_that_they_were_asked_by(
    pool: PoolView, tmp_path: Path
) -> None:
    mapping = tmp_path / "mapping.json"
    pairs = {"clusterIDMapping": {"lost": "dev"}, "RBDPoolIDMapping": [{"7777": str(pool.id())}]}
    mapping.write_text(json.dumps([pairs]), encoding="utf-8")
    pool.rbd("create", "kubernetes-dynamic-pvc-1", "--size", "1G", "--image-feature", "layering")
    with rbd_rig(pool, tmp_path, options={"clustermapping": mapping}) as rig:
        uuid_of = rig.create("pvc-1").volume_id[-36:]
        elsewhere = f"0001-0004-lost-{7777:016x}-{uuid_of}"
        migrated = f"mig_mons-dev_image-1_{pool.name.encode().hex()}"
        for handle in (elsewhere, migrated):
            seen = _get(rig, handle)
            assert seen.volume == csi_pb2.Volume(volume_id=handle, capacity_bytes=GIB)
            assert not seen.status.volume_condition.abnormal
        pool.rbd("rm", "kubernetes-dynamic-pvc-1")
        assert refusal(lambda: _get(rig, migrated))[0] is grpc.StatusCode.NOT_FOUND
