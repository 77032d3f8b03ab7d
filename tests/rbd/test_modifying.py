"""ControllerModifyVolume, and mutable parameters of CreateVolume, on a real cluster."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from csi_host.proto import csi_pb2
from csi_host_rbd.ceph.bindings import rados, rbd
from csi_host_rbd.testing.pools import PoolView
from csi_host_rbd.testing.refusals import refusal
from csi_host_rbd.testing.rig import SECONDS, RbdRig, mounted

pytestmark = pytest.mark.ceph


def _modify(rig: RbdRig, volume_id: str, **parameters: str) -> None:
    request = csi_pb2.ControllerModifyVolumeRequest(
        volume_id=volume_id, mutable_parameters=parameters, secrets=rig.secrets
    )
    rig.served.controller.ControllerModifyVolume(request, timeout=SECONDS)


def _image_of(volume: csi_pb2.Volume) -> str:
    return f"csi-vol-{volume.volume_id[-36:]}"


@contextmanager
def _opened(pool: PoolView, image: str) -> Iterator[Any]:
    """The image as a client that works with it has it: by a connection of its own, with the exclusive lock."""
    secrets = pool.cluster.secrets()
    with rados.Rados(
        rados_id=secrets["userID"], conf={"mon_host": ",".join(pool.cluster.monitors), "key": secrets["userKey"]}
    ) as connection:
        ioctx = connection.open_ioctx(pool.name)
        ioctx.set_namespace(pool.namespace)
        with rbd.Image(ioctx, image) as opened:
            opened.write(b"x" * 4096, 0)
            yield opened
        ioctx.close()


def _setting(image: Any, name: str) -> str:
    return next(str(one["value"]) for one in image.config_list() if one["name"] == name)


def test_a_class_sets_limits_and_notes_when_the_volume_is_made(rig: RbdRig) -> None:
    wanted = {"maxIops": "1000", "maxReadBps": "10Mi", "metadata/team": "shop", "metadata/none": ""}
    volume = rig.create("pvc-1", mutable_parameters=wanted)
    metadata = {"conf_rbd_qos_iops_limit": "1000", "conf_rbd_qos_read_bps_limit": "10485760", "metadata/team": "shop"}
    assert rig.pool.metadata(_image_of(volume)) == metadata
    assert rig.create("pvc-1", mutable_parameters=wanted) == volume
    assert rig.pool.metadata(_image_of(volume)) == metadata


def test_a_volume_is_changed_key_by_key_and_an_empty_value_removes(rig: RbdRig) -> None:
    volume = rig.create("pvc-1", mutable_parameters={"maxIops": "1000", "metadata/team": "shop"})
    _modify(rig, volume.volume_id, maxIops="500", maxBps="1Gi", **{"metadata/team": "", "metadata/note": "ü"})
    expected = {"conf_rbd_qos_iops_limit": "500", "conf_rbd_qos_bps_limit": "1073741824", "metadata/note": "ü"}
    assert rig.pool.metadata(_image_of(volume)) == expected
    _modify(rig, volume.volume_id, maxIops="500", maxWriteIops="")
    assert rig.pool.metadata(_image_of(volume)) == expected


def test_a_clone_and_a_restore_have_limits_of_their_own_and_not_their_sources(rig: RbdRig) -> None:
    source = rig.create("pvc-1", mutable_parameters={"maxIops": "1000", "metadata/team": "shop"})
    snapshot = rig.snapshot(source.volume_id, "snapshot-1")
    plain = rig.restore(snapshot.snapshot_id, "pvc-2")
    limited = rig.clone(source.volume_id, "pvc-3", mutable_parameters={"maxIops": "10"})
    assert rig.pool.metadata(_image_of(plain)) == {}
    assert rig.pool.metadata(_image_of(limited)) == {"conf_rbd_qos_iops_limit": "10"}


def test_a_repeated_change_writes_nothing(rig: RbdRig) -> None:
    volume = rig.create("pvc-1")
    _modify(rig, volume.volume_id, maxIops="500")
    with rig.counter.counting() as count:
        _modify(rig, volume.volume_id, maxIops="500")
    # The uuid's keys, a read-only opening, the metadata.
    assert count.operations <= 13


def test_a_late_retry_of_create_does_not_take_a_change_back(rig: RbdRig) -> None:
    wanted = {"maxIops": "1000"}
    volume = rig.create("pvc-1", mutable_parameters=wanted)
    _modify(rig, volume.volume_id, maxIops="500")
    rig.create("pvc-1", mutable_parameters=wanted)
    assert rig.pool.metadata(_image_of(volume)) == {"conf_rbd_qos_iops_limit": "500"}


def test_nothing_is_written_when_one_key_of_many_is_wrong(rig: RbdRig) -> None:
    volume = rig.create("pvc-1")
    for wrong, name in (
        ({"maxSpeed": "1"}, "maxSpeed"),
        ({"maxBps": "fast"}, "maxBps"),
        ({"burstIops": "5"}, "burstIops"),
        ({"burstReadBps": "5"}, "burstReadBps"),
    ):
        wanted = {"maxIops": "10", "metadata/a": "x", **wrong}
        code, message = refusal(lambda wanted=wanted: _modify(rig, volume.volume_id, **wanted))  # type: ignore[misc] # its default
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert f"mutable_parameters[{name}]" in message
        code, _ = refusal(lambda wanted=wanted: rig.create("pvc-2", mutable_parameters=wanted))  # type: ignore[misc] # its default
        assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert rig.pool.metadata(_image_of(volume)) == {}
    assert rig.pool.images() == [_image_of(volume)]


def test_limits_on_a_volume_for_krbd_are_refused_and_nothing_is_made(rig: RbdRig) -> None:
    for mounter in ("rbd", ""):
        parameters = rig.parameters(mounter=mounter)
        code, message = refusal(
            lambda parameters=parameters: rig.create(  # type: ignore[misc] # its default
                "pvc-1", parameters=parameters, mutable_parameters={"maxIops": "5"}
            )
        )
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "mounter" in message
    assert rig.pool.images() == []
    rig.create("pvc-1", parameters=rig.parameters(mounter="rbd"), mutable_parameters={"metadata/a": "b"})


def test_what_a_class_would_change_is_confirmed_or_told(rig: RbdRig) -> None:
    volume = rig.create("pvc-1")

    def validate(**mutable_parameters: str) -> csi_pb2.ValidateVolumeCapabilitiesResponse:
        request = csi_pb2.ValidateVolumeCapabilitiesRequest(
            volume_id=volume.volume_id,
            volume_capabilities=[mounted()],
            mutable_parameters=mutable_parameters,
            secrets=rig.secrets,
        )
        return rig.served.controller.ValidateVolumeCapabilities(request, timeout=SECONDS)

    assert dict(validate(maxIops="5").confirmed.mutable_parameters) == {"maxIops": "5"}
    refused = validate(maxSpeed="5")
    assert not refused.HasField("confirmed")
    assert "mutable_parameters[maxSpeed]" in refused.message


def test_an_unknown_volume_is_not_found_and_an_unknown_key_is_told_before_that(rig: RbdRig) -> None:
    volume = rig.create("pvc-1")
    rig.delete(volume.volume_id)
    for handle in (volume.volume_id, "junk"):
        code, message = refusal(lambda handle=handle: _modify(rig, handle, maxIops="1"))  # type: ignore[misc] # its default
        assert code is grpc.StatusCode.NOT_FOUND
        assert "volume_id" in message
    code, _ = refusal(lambda: _modify(rig, "junk", none="1"))
    assert code is grpc.StatusCode.INVALID_ARGUMENT


def test_a_client_that_works_with_the_image_hears_of_the_new_limit_at_once(rig: RbdRig) -> None:
    features = "layering,exclusive-lock,object-map,fast-diff"
    volume = rig.create("pvc-1", parameters=rig.parameters(imageFeatures=features))
    with _opened(rig.pool, _image_of(volume)) as image:
        _modify(rig, volume.volume_id, maxWriteIops="77")
        # It still works, and what it reads of its settings is the new one.
        image.write(b"y" * 4096, 4096)
        assert _setting(image, "rbd_qos_write_iops_limit") == "77"
        _modify(rig, volume.volume_id, maxWriteIops="")
        image.write(b"z" * 4096, 8192)
        assert _setting(image, "rbd_qos_write_iops_limit") == "0"


def test_a_limit_of_librbd_does_limit(rig: RbdRig) -> None:
    volume = rig.create("pvc-1", mutable_parameters={"maxWriteIops": "10"})
    with _opened(rig.pool, _image_of(volume)) as image:
        began = time.monotonic()
        for number in range(25):
            image.write(b"x" * 512, number * 4096)
        # Ten a second, of which the first second's may pass at once: unlimited it takes some milliseconds.
        assert time.monotonic() - began > 1.0
