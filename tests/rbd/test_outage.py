"""The cluster hangs, and comes back: the OSD or the manager suspended with SIGSTOP."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from csi_host.proto import csi_pb2
from csi_host_rbd.devcluster import DevCluster
from csi_host_rbd.testing.pools import PoolView
from csi_host_rbd.testing.rig import RbdRig, rbd_rig

pytestmark = pytest.mark.ceph

_ASK_AGAIN = {grpc.StatusCode.ABORTED, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE}
_OPERATION_SECONDS = 3.0


@pytest.fixture
def impatient(pool: PoolView, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RbdRig]:
    """A driver that gives an operation of the cluster three seconds."""
    options = {"cephoptimeout": _OPERATION_SECONDS, "cephmgrtimeout": _OPERATION_SECONDS}
    with rbd_rig(pool, tmp_path_factory.mktemp("o"), options=options) as rig:
        rig.delete(rig.create("warm-up").volume_id)
        yield rig


@pytest.fixture
def suspended_osd(ceph: DevCluster) -> Iterator[DevCluster]:
    """The cluster with its OSD suspended; it goes on at the latest when the test ends."""
    ceph.stop_osd()
    yield ceph
    ceph.resume_osd()


def _create_until_made(rig: RbdRig, name: str) -> csi_pb2.Volume:
    deadline = time.monotonic() + 60
    while True:
        try:
            return rig.create(name)
        except grpc.RpcError as error:
            if error.code() not in _ASK_AGAIN or time.monotonic() > deadline:
                raise
        time.sleep(0.2)


def test_with_the_osd_hung_calls_end_probe_answers_and_all_goes_on_after_it(
    impatient: RbdRig, suspended_osd: DevCluster
) -> None:
    rig = impatient
    with ThreadPoolExecutor(2) as callers:
        request = rig.create_request("pvc-1")
        first = callers.submit(rig.served.controller.CreateVolume, request, timeout=4 * _OPERATION_SECONDS)
        second = callers.submit(rig.served.controller.CreateVolume, rig.create_request("pvc-2"), timeout=60)
        slowest = 0.0
        while not (first.done() and second.done()):
            begun = time.monotonic()
            assert rig.served.identity.Probe(csi_pb2.ProbeRequest(), timeout=5).ready.value
            slowest = max(slowest, time.monotonic() - begun)
            time.sleep(0.05)
        assert slowest < 0.1
        for call in (first, second):
            error = call.exception()
            assert isinstance(error, grpc.RpcError)
            assert error.code() in _ASK_AGAIN
    suspended_osd.resume_osd()
    volumes = [_create_until_made(rig, name) for name in ("pvc-1", "pvc-2")]
    assert len(rig.pool.images()) == 2
    assert len(rig.pool.journal()) == 3
    for volume in volumes:
        rig.delete(volume.volume_id)
    assert rig.pool.journal() == {"csi.volumes.default": {}}
    assert rig.pool.images() == []
    rig.pool.wait_until_trash_is_empty()


@pytest.mark.parametrize("seconds", [0.0, 0.002, 0.004, 0.006, 0.008, 0.012])
def test_an_osd_that_hangs_in_the_middle_of_a_create_leaves_nothing_behind(
    impatient: RbdRig, ceph: DevCluster, seconds: float
) -> None:
    rig = impatient
    with ThreadPoolExecutor(1) as callers:
        call = callers.submit(rig.create, "pvc-1")
        time.sleep(seconds)
        ceph.stop_osd()
        try:
            error = call.exception()
        finally:
            ceph.resume_osd()
    assert error is None or (isinstance(error, grpc.RpcError) and error.code() in _ASK_AGAIN)
    volume = _create_until_made(rig, "pvc-1")
    assert len(rig.pool.images()) == 1
    assert set(rig.pool.journal()) == {"csi.volumes.default", f"csi.volume.{volume.volume_id[-36:]}"}
    rig.delete(volume.volume_id)
    assert rig.pool.journal() == {"csi.volumes.default": {}}
    rig.pool.wait_until_trash_is_empty()


def test_without_a_manager_a_delete_asks_to_be_called_again_and_then_finishes(
    impatient: RbdRig, ceph: DevCluster
) -> None:
    rig = impatient
    volume = rig.create("pvc-1")
    ceph.stop_manager()
    try:
        with pytest.raises(grpc.RpcError) as caught:
            rig.delete(volume.volume_id)
    finally:
        ceph.resume_manager()
    assert caught.value.code() in _ASK_AGAIN
    assert rig.pool.images() == []
    assert f"csi.volume.{volume.volume_id[-36:]}" in rig.pool.journal()
    rig.delete(volume.volume_id)
    assert rig.pool.journal() == {"csi.volumes.default": {}}
    rig.pool.wait_until_trash_is_empty()
