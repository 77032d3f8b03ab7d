"""csi-host as a process of its own, told to stop in the middle of its work."""

import signal
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from csi_host.proto import csi_pb2_grpc
from csi_host.testing import host_process
from csi_host.testing.host_process import HostProcess
from csi_host_rbd.testing.pools import PoolView
from csi_host_rbd.testing.rig import RbdRig, write_clusters_file

pytestmark = pytest.mark.ceph

_GRACE_SECONDS = 4.0
_ASK_AGAIN = {
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNAVAILABLE,
    # The server's last word to a call whose handler it could not wait for.
    grpc.StatusCode.CANCELLED,
}


@dataclass(frozen=True, kw_only=True)
class _Host:
    process: HostProcess
    controller: csi_pb2_grpc.ControllerStub


@contextmanager
def _serving(pool: PoolView, directory: Path) -> Iterator[_Host]:
    """Serve the rbd controller in a process; what becomes of the process is the test's business."""
    arguments = [
        "--driver=rbd",
        "--controllerserver",
        f"--cephcsiconfig={write_clusters_file(pool, directory)}",
        f"--grace-period={_GRACE_SECONDS:g}s",
    ]
    with tempfile.TemporaryDirectory(prefix="csi-") as sockets:
        host = host_process.start(arguments, socket=Path(sockets) / "csi.sock", log_file=directory / "host.log")
        try:
            with grpc.insecure_channel(host.endpoint) as channel:
                yield _Host(process=host, controller=csi_pb2_grpc.ControllerStub(channel))
        finally:
            host.process.kill()
            host.process.wait()


def _stop_within(host: _Host, seconds: float) -> int:
    begun = time.monotonic()
    host.process.process.send_signal(signal.SIGTERM)
    code = host.process.process.wait(seconds + 10)
    assert time.monotonic() - begun < seconds
    return code


def _volume_of(call: Future[Any]) -> str | None:
    error = call.exception()
    if error is None:
        return str(call.result().volume.volume_id)
    assert isinstance(error, grpc.RpcError)
    assert error.code() in _ASK_AGAIN, error.details()
    return None


def _wait_until_begun(host: _Host, rig: RbdRig, name: str) -> None:
    """Wait until a CreateVolume of this name holds its lock: another one is then told to ask again."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with pytest.raises(grpc.RpcError) as caught:
            host.controller.CreateVolume(rig.create_request(name), timeout=1)
        if caught.value.code() is grpc.StatusCode.ABORTED:
            return
    raise AssertionError(f"no CreateVolume of {name} has begun")


def _assert_one_volume(rig: RbdRig, name: str) -> None:
    volume = rig.create(name)
    assert rig.pool.images() == [f"csi-vol-{volume.volume_id[-36:]}"]
    rig.delete(volume.volume_id)
    assert rig.pool.journal() == {"csi.volumes.default": {}}


@pytest.mark.parametrize("milliseconds", [0, 2, 5, 9])
def test_sigterm_during_a_create_ends_it_or_leaves_it_to_the_retry(
    rig: RbdRig, tmp_path: Path, milliseconds: int
) -> None:
    with _serving(rig.pool, tmp_path) as host, ThreadPoolExecutor(1) as caller:
        call = caller.submit(host.controller.CreateVolume, rig.create_request("pvc-1"), timeout=30)
        time.sleep(milliseconds / 1000)
        # Nothing hangs, so the call ends long before the grace period does.
        assert _stop_within(host, _GRACE_SECONDS + 2) == 0
        made = _volume_of(call)
    if made is not None:
        assert rig.create("pvc-1").volume_id == made
    _assert_one_volume(rig, "pvc-1")


def test_sigterm_while_the_cluster_hangs_ends_within_the_grace_period(rig: RbdRig, tmp_path: Path) -> None:
    with _serving(rig.pool, tmp_path) as host, ThreadPoolExecutor(1) as caller:
        host.controller.CreateVolume(rig.create_request("pvc-0"), timeout=30)
        rig.delete(rig.create("pvc-0").volume_id)
        rig.pool.cluster.stop_osd()
        try:
            call = caller.submit(host.controller.CreateVolume, rig.create_request("pvc-1"), timeout=30)
            _wait_until_begun(host, rig, "pvc-1")
            assert _stop_within(host, _GRACE_SECONDS + 3) == 3
            assert _volume_of(call) is None
        finally:
            rig.pool.cluster.resume_osd()
    assert "CreateVolume" in host.process.log()
    _assert_one_volume(rig, "pvc-1")
