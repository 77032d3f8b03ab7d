"""The Controller service on a real cluster, seen through gRPC and through Ceph's own tools."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest

from csi_host.proto import csi_pb2
from csi_host_rbd.testing.pools import PoolView
from csi_host_rbd.testing.rig import GIB, SECONDS, RbdRig, block, mounted, rbd_rig

pytestmark = pytest.mark.ceph

MIB = 1024**2
_Mode = csi_pb2.VolumeCapability.AccessMode


def _refusal(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details() or ""


def _uuid_of(volume_id: str) -> str:
    return volume_id[-36:]


def test_a_volume_is_kept_as_ceph_csi_keeps_it_key_by_key(rig: RbdRig) -> None:
    volume = rig.create("pvc-1", parameters=rig.parameters(**{"csi.storage.k8s.io/pvc/namespace": "shop"}))
    uuid = _uuid_of(volume.volume_id)
    image = rig.pool.image(f"csi-vol-{uuid}")
    assert rig.pool.journal() == {
        "csi.volumes.default": {"csi.volume.pvc-1": uuid},
        f"csi.volume.{uuid}": {
            "csi.volname": "pvc-1",
            "csi.imagename": f"csi-vol-{uuid}",
            "csi.imageid": image["id"],
            "csi.volume.owner": "shop",
        },
    }
    assert image["size"] == GIB
    assert image["features"] == ["layering"]


def test_the_handle_and_the_context_are_what_ceph_csi_answers(rig: RbdRig) -> None:
    volume = rig.create("pvc-1")
    uuid = _uuid_of(volume.volume_id)
    pool_id = rig.pool.id()
    assert volume.volume_id == f"0001-0003-dev-{pool_id:016x}-{uuid}"
    assert volume.capacity_bytes == GIB
    assert dict(volume.volume_context) == {
        **rig.parameters(),
        "journalPool": rig.pool.name,
        "imageName": f"csi-vol-{uuid}",
        "radosNamespace": rig.pool.namespace,
    }


def test_nothing_is_left_after_a_delete_and_a_second_delete_is_fine(rig: RbdRig) -> None:
    volume = rig.create("pvc-1")
    rig.delete(volume.volume_id)
    rig.delete(volume.volume_id)
    assert rig.pool.journal() == {"csi.volumes.default": {}}
    assert rig.pool.images() == []
    rig.pool.wait_until_trash_is_empty()


def test_the_same_name_gives_the_same_volume(rig: RbdRig) -> None:
    assert rig.create("pvc-1") == rig.create("pvc-1")
    assert len(rig.pool.images()) == 1


def test_a_name_cannot_be_used_for_a_volume_of_another_size(rig: RbdRig) -> None:
    rig.create("pvc-1")
    for capacity in (
        csi_pb2.CapacityRange(required_bytes=2 * GIB),
        csi_pb2.CapacityRange(required_bytes=100 * MIB, limit_bytes=500 * MIB),
    ):
        code, message = _refusal(partial(rig.create, "pvc-1", capacity_range=capacity))
        assert code is grpc.StatusCode.ALREADY_EXISTS
        assert "capacity_range" in message


def test_a_smaller_request_for_an_existing_name_is_served_by_it_and_never_shrinks_it(rig: RbdRig) -> None:
    first = rig.create("pvc-1", capacity_range=csi_pb2.CapacityRange(required_bytes=2 * GIB))
    second = rig.create("pvc-1", capacity_range=csi_pb2.CapacityRange(required_bytes=GIB))
    assert second == first
    assert second.capacity_bytes == 2 * GIB


def test_an_existing_volume_that_the_rounding_would_not_give_again_is_still_the_one(rig: RbdRig) -> None:
    exact = csi_pb2.CapacityRange(required_bytes=1200 * MIB, limit_bytes=1300 * MIB)
    first = rig.create("pvc-1", capacity_range=exact)
    assert first.capacity_bytes == 1200 * MIB
    assert rig.create("pvc-1", capacity_range=csi_pb2.CapacityRange(required_bytes=1200 * MIB)) == first


def test_one_volume_has_one_lock_however_its_handle_is_written(rig: RbdRig) -> None:
    volume = rig.create("pvc-1")
    handle = f"ffff{volume.volume_id[4:]}"
    assert rig.expand(handle, 2 * GIB).capacity_bytes == 2 * GIB
    rig.delete(handle)
    assert rig.pool.images() == []


def test_a_name_of_128_characters_survives(rig: RbdRig) -> None:
    volume = rig.create("n" * 128)
    assert f"csi.volume.{'n' * 128}" in rig.pool.keys("csi.volumes.default")
    rig.delete(volume.volume_id)
    assert rig.pool.journal() == {"csi.volumes.default": {}}


def test_features_striping_data_pool_and_prefix_reach_the_image(rig: RbdRig) -> None:
    data_pool = f"{rig.pool.name}-data"
    rig.pool.cluster.create_pool(data_pool)
    volume = rig.create(
        "pvc-1",
        parameters=rig.parameters(
            imageFeatures="layering,exclusive-lock,object-map,fast-diff,deep-flatten",
            stripeUnit="65536",
            stripeCount="4",
            objectSize="8388608",
            dataPool=data_pool,
            volumeNamePrefix="team-a-",
        ),
    )
    image = rig.pool.image(f"team-a-{_uuid_of(volume.volume_id)}")
    assert set(image["features"]) == {
        "layering", "exclusive-lock", "object-map", "fast-diff", "deep-flatten", "striping", "data-pool"
    }  # fmt: skip
    assert (image["stripe_unit"], image["stripe_count"], image["order"]) == (65536, 4, 23)
    assert image["data_pool"] == data_pool
    assert volume.volume_context["dataPool"] == data_pool
    rig.delete(volume.volume_id)
    assert rig.pool.journal() == {"csi.volumes.default": {}}
    rig.pool.wait_until_trash_is_empty()
    rig.pool.cluster.delete_pool(data_pool)


def test_without_image_features_the_clusters_default_is_used(rig: RbdRig) -> None:
    parameters = rig.parameters()
    del parameters["imageFeatures"]
    volume = rig.create("pvc-1", parameters=parameters)
    features = rig.pool.image(f"csi-vol-{_uuid_of(volume.volume_id)}")["features"]
    assert set(features) == {"layering", "exclusive-lock", "object-map", "fast-diff", "deep-flatten"}


def test_a_rados_namespace_holds_journal_and_images_and_leaves_the_others_alone(
    rig: RbdRig, tmp_path_factory: pytest.TempPathFactory
) -> None:
    inner = rig.pool.in_namespace("tenant")
    with rbd_rig(inner, tmp_path_factory.mktemp("tenant")) as tenant:
        ours, theirs = rig.create("pvc-1"), tenant.create("pvc-1")
        assert theirs.volume_context["radosNamespace"] == "tenant"
        assert rig.pool.images() == [f"csi-vol-{_uuid_of(ours.volume_id)}"]
        assert inner.images() == [f"csi-vol-{_uuid_of(theirs.volume_id)}"]
        tenant.delete(theirs.volume_id)
        assert inner.journal() == {"csi.volumes.default": {}}
        inner.wait_until_trash_is_empty()
    assert rig.create("pvc-1") == ours


def test_an_instance_has_a_directory_of_its_own(rig: RbdRig, tmp_path_factory: pytest.TempPathFactory) -> None:
    with rbd_rig(rig.pool, tmp_path_factory.mktemp("b"), instance_id="b") as other:
        assert other.create("pvc-1").volume_id != rig.create("pvc-1").volume_id
    assert set(rig.pool.keys("csi.volumes.b")) == set(rig.pool.keys("csi.volumes.default")) == {"csi.volume.pvc-1"}


def test_metadata_names_the_claim_and_the_cluster_when_asked_to(
    rig: RbdRig, tmp_path_factory: pytest.TempPathFactory
) -> None:
    names = {
        "csi.storage.k8s.io/pvc/name": "data",
        "csi.storage.k8s.io/pvc/namespace": "shop",
        "csi.storage.k8s.io/pv/name": "pvc-1",
    }
    with rbd_rig(rig.pool, tmp_path_factory.mktemp("m"), set_metadata=True, cluster_name="blue") as marking:
        volume = marking.create("pvc-1", parameters=rig.parameters(**names))
    image = f"csi-vol-{_uuid_of(volume.volume_id)}"
    assert rig.pool.metadata(image) == names | {"csi.ceph.com/cluster/name": "blue"}
    plain = rig.create("pvc-2", parameters=rig.parameters(**names))
    assert rig.pool.metadata(f"csi-vol-{_uuid_of(plain.volume_id)}") == {}


@pytest.mark.parametrize(
    ("changes", "code", "named"),
    [
        ({"name": ""}, "INVALID_ARGUMENT", "name"),
        ({"volume_capabilities": []}, "INVALID_ARGUMENT", "volume_capabilities"),
        ({"parameters": {"pool": "rbd"}}, "INVALID_ARGUMENT", "clusterID"),
        ({"parameters": {"clusterID": "dev"}}, "INVALID_ARGUMENT", "pool"),
        ({"parameters": {"clusterID": "elsewhere", "pool": "rbd"}}, "INVALID_ARGUMENT", "elsewhere"),
        ({"parameters": {"clusterID": "dev", "pool": "no-such-pool"}}, "INVALID_ARGUMENT", "no-such-pool"),
        ({"parameters": {"clusterID": "dev", "pool": "rbd", "dataPool": "rbd-nix"}}, "INVALID_ARGUMENT", "[dataPool]"),
        ({"parameters": {"clusterID": "dev", "pool": "rbd", "dataPool": ""}}, "INVALID_ARGUMENT", "dataPool"),
        (
            {"parameters": {"clusterID": "dev", "pool": "rbd", "imageFeatures": "x"}},
            "INVALID_ARGUMENT",
            "imageFeatures",
        ),
        ({"parameters": {"clusterID": "dev", "pool": "rbd", "stripeUnit": "1"}}, "INVALID_ARGUMENT", "stripeCount"),
        ({"volume_capabilities": [mounted(_Mode.MULTI_NODE_MULTI_WRITER)]}, "INVALID_ARGUMENT", "access_mode"),
        ({"volume_capabilities": [mounted(_Mode.MULTI_NODE_SINGLE_WRITER)]}, "INVALID_ARGUMENT", "access_mode"),
        ({"volume_capabilities": [mounted(_Mode.MULTI_NODE_READER_ONLY)]}, "INVALID_ARGUMENT", "content_source"),
        ({"volume_capabilities": [block(_Mode.SINGLE_NODE_READER_ONLY)]}, "INVALID_ARGUMENT", "content_source"),
        ({"secrets": {}}, "INVALID_ARGUMENT", "secrets"),
        ({"secrets": {"userID": "csi"}}, "INVALID_ARGUMENT", "userKey"),
        ({"secrets": {"userKey": "AQ=="}}, "INVALID_ARGUMENT", "userID"),
        (
            {"capacity_range": csi_pb2.CapacityRange(required_bytes=MIB + 1, limit_bytes=MIB + 2)},
            "OUT_OF_RANGE",
            "limit_bytes",
        ),
        ({"volume_content_source": csi_pb2.VolumeContentSource()}, "INVALID_ARGUMENT", "volume_content_source.type"),
        (
            {
                "volume_content_source": csi_pb2.VolumeContentSource(
                    volume=csi_pb2.VolumeContentSource.VolumeSource(volume_id="x")
                )
            },
            "NOT_FOUND",
            "volume_content_source.volume.volume_id",
        ),
        ({"mutable_parameters": {"iops": "1"}}, "INVALID_ARGUMENT", "mutable_parameters"),
    ],
)
def test_what_create_refuses_names_the_field_and_leaves_nothing(
    rig: RbdRig, changes: dict[str, Any], code: str, named: str
) -> None:
    fields = {"name": "pvc-1", **changes}
    if fields.get("parameters", {}).get("pool") == "rbd":
        fields["parameters"]["pool"] = rig.pool.name
    request = rig.create_request(**fields)
    found, message = _refusal(lambda: rig.served.controller.CreateVolume(request, timeout=SECONDS))
    assert (found.name, named in message) == (code, True), message
    assert rig.pool.journal() == {}
    assert rig.pool.images() == []


@pytest.mark.parametrize(
    ("user", "key", "code"),
    [
        ("csi", "AQDHLwFrwHc1JhAAB5h+MdNDJPyA5FrHcmqjpw==", grpc.StatusCode.UNAUTHENTICATED),
        ("nobody", "AQDHLwFrwHc1JhAAB5h+MdNDJPyA5FrHcmqjpw==", grpc.StatusCode.UNAUTHENTICATED),
        ("csi", "AQBXxxxxAAAAABAAwrongkeywrongkeywrongkeyA==", grpc.StatusCode.INVALID_ARGUMENT),
        ("csi", "no key at all", grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
def test_a_wrong_key_is_refused_and_shown_nowhere(
    rig: RbdRig, capfd: pytest.CaptureFixture[str], user: str, key: str, code: grpc.StatusCode
) -> None:
    found, message = _refusal(lambda: rig.create("pvc-1", secrets={"userID": user, "userKey": key}))
    assert found is code
    captured = capfd.readouterr()
    assert key not in message + captured.out + captured.err


def test_rwx_block_is_served_and_rwx_filesystem_is_not_confirmed(rig: RbdRig) -> None:
    volume = rig.create("pvc-1", volume_capabilities=[block(_Mode.MULTI_NODE_MULTI_WRITER)])

    def validate(*capabilities: csi_pb2.VolumeCapability) -> csi_pb2.ValidateVolumeCapabilitiesResponse:
        return rig.served.controller.ValidateVolumeCapabilities(
            csi_pb2.ValidateVolumeCapabilitiesRequest(
                volume_id=volume.volume_id, volume_capabilities=capabilities, secrets=rig.secrets
            ),
            timeout=SECONDS,
        )

    confirmed = validate(block(_Mode.MULTI_NODE_MULTI_WRITER), mounted())
    assert len(confirmed.confirmed.volume_capabilities) == 2
    refused = validate(mounted(_Mode.MULTI_NODE_MULTI_WRITER))
    assert not refused.HasField("confirmed")
    assert "access_mode" in refused.message


@pytest.mark.parametrize("junk", ["fake-vol-id", "0001-0003-dev", "x" * 128, "-", "0001-ffff-dev-" + "0" * 60])
def test_a_junk_handle_is_not_found_and_deleting_it_is_fine(rig: RbdRig, junk: str) -> None:
    rig.delete(junk)
    code, message = _refusal(lambda: rig.expand(junk, GIB))
    assert code is grpc.StatusCode.NOT_FOUND
    assert "volume_id" in message
    request = csi_pb2.ValidateVolumeCapabilitiesRequest(
        volume_id=junk, volume_capabilities=[mounted()], secrets=rig.secrets
    )
    code, _ = _refusal(lambda: rig.served.controller.ValidateVolumeCapabilities(request, timeout=SECONDS))
    assert code is grpc.StatusCode.NOT_FOUND


def test_a_handle_of_a_pool_that_is_gone_is_not_found_and_deleting_it_is_fine(rig: RbdRig) -> None:
    handle = "0001-0003-dev-00000000000fffff-00000000-1111-2222-bbbb-cacacacacaca"
    rig.delete(handle)
    code, _ = _refusal(lambda: rig.expand(handle, GIB))
    assert code is grpc.StatusCode.NOT_FOUND


def test_a_handle_of_a_cluster_that_is_not_configured_is_never_taken_for_deleted(rig: RbdRig) -> None:
    handle = "0001-0009-elsewhere-0000000000000001-00000000-1111-2222-bbbb-cacacacacaca"
    code, message = _refusal(lambda: rig.delete(handle))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "missing configuration for cluster ID" in message


def test_expansion_grows_and_never_shrinks(rig: RbdRig) -> None:
    volume = rig.create("pvc-1")
    grown = rig.expand(volume.volume_id, 3 * GIB)
    assert (grown.capacity_bytes, grown.node_expansion_required) == (3 * GIB, True)
    assert rig.pool.image(f"csi-vol-{_uuid_of(volume.volume_id)}")["size"] == 3 * GIB
    again = rig.expand(volume.volume_id, 2 * GIB)
    assert (again.capacity_bytes, again.node_expansion_required) == (3 * GIB, True)


def test_expansion_beyond_the_limit_is_out_of_range_and_changes_nothing(rig: RbdRig) -> None:
    volume = rig.create("pvc-1", capacity_range=csi_pb2.CapacityRange(required_bytes=2 * GIB))
    for required, limit in ((GIB, GIB), (3 * GIB + 1, 3 * GIB + 2)):
        capacity = csi_pb2.CapacityRange(required_bytes=required, limit_bytes=limit)
        code, message = _refusal(partial(rig.expand, volume.volume_id, 0, capacity_range=capacity))
        assert code is grpc.StatusCode.OUT_OF_RANGE
        assert "limit_bytes" in message
    assert rig.pool.image(f"csi-vol-{_uuid_of(volume.volume_id)}")["size"] == 2 * GIB


def test_an_image_that_is_open_somewhere_is_not_deleted_and_the_error_says_where(rig: RbdRig) -> None:
    volume = rig.create("pvc-1")
    image = f"csi-vol-{_uuid_of(volume.volume_id)}"
    with rig.pool.watched(image):
        code, message = _refusal(lambda: rig.delete(volume.volume_id))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert f"{image} is still being used" in message
        assert re.search(r"client\.\d+ at 127\.0\.0\.1:", message)
    assert rig.pool.images() == [image]
    rig.delete(volume.volume_id)
    assert rig.pool.images() == []


def test_a_volume_without_secrets_is_not_deleted(pool: PoolView, tmp_path: Path) -> None:
    with rbd_rig(pool, tmp_path, options={"controllersecret": None}) as rig:
        volume = rig.create("pvc-1")
        request = csi_pb2.DeleteVolumeRequest(volume_id=volume.volume_id)
        code, message = _refusal(lambda: rig.served.controller.DeleteVolume(request, timeout=SECONDS))
    assert (code, "secrets" in message) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    assert len(pool.images()) == 1


def test_a_move_to_the_trash_that_was_cut_off_is_brought_to_its_end(rig: RbdRig) -> None:
    """librbd refuses for ever to remove an image that it takes to be on its way."""
    volume = rig.create("pvc-1")
    rig.pool.cut_off_trash_move(volume.volume_context["imageName"])
    rig.delete(volume.volume_id)
    rig.pool.wait_until_trash_is_empty()
    assert rig.pool.journal() == {"csi.volumes.default": {}}
