"""Calls that bring no secret: what they need, what is promised without it, and what is never told."""

import base64
import json
import struct
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from csi_host.errors import FailedPrecondition, InvalidArgument
from csi_host.proto import csi_pb2
from csi_host_rbd.controller_secret import ControllerSecret, ControllerSecretInvalid, NoControllerSecret
from csi_host_rbd.testing.pools import PoolView
from csi_host_rbd.testing.refusals import refusal
from csi_host_rbd.testing.rig import SECONDS, RbdRig, mounted, rbd_rig

_NEED_SECRET = {"LIST_VOLUMES", "LIST_SNAPSHOTS", "GET_CAPACITY", "GET_VOLUME", "VOLUME_CONDITION"}


def _key(text: str) -> str:
    content = text.encode()
    return base64.b64encode(struct.pack("<HIIH", 1, 0, 0, len(content)) + content).decode()


def _directory(path: Path, user: str, key: str) -> Path:
    path.mkdir(parents=True)
    (path / "userID").write_text(f"{user}\n", encoding="utf-8")
    (path / "userKey").write_text(f"{key}\n", encoding="utf-8")
    return path


def _file(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_a_mounted_secret_is_read_for_all_clusters_or_for_one(tmp_path: Path) -> None:
    path = _directory(tmp_path / "secret", "all", _key("a"))
    _directory(path / "east", "east", _key("b"))
    secret = ControllerSecret(path)
    assert secret.credentials(None, "west").user_id == "all"
    assert secret.credentials(None, "east").user_id == "east"
    assert secret.credentials(None, "east").key == _key("b")


def test_a_file_is_json_or_yaml_for_all_clusters_or_by_cluster(tmp_path: Path) -> None:
    one = _file(tmp_path / "one.json", {"userID": "all", "userKey": _key("a")})
    assert ControllerSecret(one).credentials(None, "any").user_id == "all"
    many = tmp_path / "many.yaml"
    many.write_text(f"east:\n  userID: e\n  userKey: {_key('e')}\nuserID: w\nuserKey: {_key('w')}\n", encoding="utf-8")
    assert [ControllerSecret(many).credentials(None, name).user_id for name in ("east", "west")] == ["e", "w"]


def test_a_changed_key_is_used_at_once(tmp_path: Path) -> None:
    path = _file(tmp_path / "secret.json", {"userID": "u", "userKey": _key("old")})
    secret = ControllerSecret(path)
    assert secret.credentials(None, "c").key == _key("old")
    _file(path, {"userID": "u", "userKey": _key("new")})
    assert secret.credentials(None, "c").key == _key("new")


def test_a_calls_own_secret_goes_first_and_is_not_replaced_when_it_is_wrong(tmp_path: Path) -> None:
    secret = ControllerSecret(_file(tmp_path / "secret.json", {"userID": "u", "userKey": _key("k")}))
    assert secret.credentials({"userID": "own", "userKey": _key("own")}, "c").user_id == "own"
    assert secret.credentials({}, "c").user_id == "u"
    with pytest.raises(InvalidArgument, match="userKey"):
        secret.credentials({"userID": "own"}, "c")


def test_without_one_each_call_says_what_it_lacks() -> None:
    with pytest.raises(NoControllerSecret, match="--controllersecret"):
        ControllerSecret(None).credentials(None, "c")
    with pytest.raises(InvalidArgument, match="secrets"):
        ControllerSecret(None).credentials({}, "c")


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path / "missing",
        lambda path: _file(path / "list.json", [_key("SECRET")]),
        lambda path: _file(path / "half.json", {"userID": "u"}),
        lambda path: _file(path / "bad.json", {"userID": "u", "userKey": "SECRET"}),
        lambda path: _written(path / "broken.yaml", b"userKey: 'SECRET\n  x: ["),
        lambda path: _written(path / "binary", b"\xff\xfeSECRET"),
        lambda path: path,
    ],
)
def test_what_cannot_be_used_is_named_and_never_shown(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path)
    with pytest.raises(ControllerSecretInvalid) as caught:
        ControllerSecret(path).credentials(None, "c")
    assert isinstance(caught.value, FailedPrecondition)
    assert str(path) in str(caught.value)
    assert "SECRET" not in repr(caught.value)
    assert caught.value.__cause__ is None


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("cluster_id", ["..", ".", "", "../other", "/etc"])
def test_a_cluster_id_never_leads_out_of_the_directory(tmp_path: Path, cluster_id: str) -> None:
    path = _directory(tmp_path / "secrets" / "inner", "inner", _key("i"))
    _directory(tmp_path / "other", "other", _key("o"))
    (tmp_path / "secrets" / "userID").write_text("outer", encoding="utf-8")
    (tmp_path / "secrets" / "userKey").write_text(_key("x"), encoding="utf-8")
    assert ControllerSecret(path).credentials(None, cluster_id).user_id == "inner"


@pytest.mark.ceph
def test_what_needs_a_secret_of_the_drivers_own_is_promised_with_one_only(
    rig: RbdRig, pool: PoolView, tmp_path: Path
) -> None:
    with_one = _capabilities(rig)
    with rbd_rig(pool, tmp_path, options={"controllersecret": None}) as bare:
        without = _capabilities(bare)
        for call, request in (
            (bare.served.controller.ListVolumes, csi_pb2.ListVolumesRequest()),
            (bare.served.controller.GetCapacity, csi_pb2.GetCapacityRequest(parameters=bare.parameters())),
            (bare.served.controller.ControllerGetVolume, csi_pb2.ControllerGetVolumeRequest(volume_id=_some_id(bare))),
        ):
            code, message = refusal(lambda call=call, request=request: call(request, timeout=SECONDS))  # type: ignore[misc] # defaults
            assert code is grpc.StatusCode.FAILED_PRECONDITION
            assert "--controllersecret" in message
        listing = csi_pb2.ListSnapshotsRequest(secrets=bare.secrets)
        assert bare.served.controller.ListSnapshots(listing, timeout=SECONDS) == csi_pb2.ListSnapshotsResponse()
    assert with_one - without == _NEED_SECRET
    assert without - with_one == set()
    assert not with_one & {"LIST_VOLUMES_PUBLISHED_NODES", "PUBLISH_UNPUBLISH_VOLUME"}
    assert {"SINGLE_NODE_MULTI_WRITER", "MODIFY_VOLUME"} <= without


def _some_id(rig: RbdRig) -> str:
    return f"0001-0003-dev-{rig.pool.id():016x}-2a7c9c3e-0d5f-4c0e-9a52-6f0b7a1d9e11"


def _capabilities(rig: RbdRig) -> set[str]:
    answer = rig.served.controller.ControllerGetCapabilities(csi_pb2.ControllerGetCapabilitiesRequest())
    types = csi_pb2.ControllerServiceCapability.RPC.Type
    return {types.Name(capability.rpc.type) for capability in answer.capabilities}


@pytest.mark.ceph
def test_a_volume_whose_secret_is_gone_can_be_deleted(rig: RbdRig) -> None:
    volume = rig.create("pvc-1")
    rig.served.controller.DeleteVolume(csi_pb2.DeleteVolumeRequest(volume_id=volume.volume_id), timeout=SECONDS)
    assert rig.pool.images() == []


@pytest.mark.ceph
def test_a_volume_can_be_published_when_it_is_there_and_fits_and_unpublished_always(rig: RbdRig) -> None:
    volume = rig.create("pvc-1")

    def publish(**changes: object) -> csi_pb2.ControllerPublishVolumeResponse:
        usual = {"volume_id": volume.volume_id, "node_id": "node-a", "volume_capability": mounted()}
        request = csi_pb2.ControllerPublishVolumeRequest(**{**usual, **changes})  # type: ignore[arg-type] # by name
        return rig.served.controller.ControllerPublishVolume(request, timeout=SECONDS)

    shared = mounted(csi_pb2.VolumeCapability.AccessMode.MULTI_NODE_MULTI_WRITER)
    for _ in range(2):
        assert publish() == csi_pb2.ControllerPublishVolumeResponse()
    assert refusal(lambda: publish(volume_id=_some_id(rig)))[0] is grpc.StatusCode.NOT_FOUND
    assert refusal(lambda: publish(volume_id="junk"))[0] is grpc.StatusCode.NOT_FOUND
    assert refusal(lambda: publish(volume_capability=shared))[0] is grpc.StatusCode.INVALID_ARGUMENT
    for field in ("volume_id", "node_id", "volume_capability"):
        code, message = refusal(lambda field=field: publish(**{field: None}))  # type: ignore[misc] # its default
        assert (code, message) == (grpc.StatusCode.INVALID_ARGUMENT, f"{field}: required")
    for handle in (volume.volume_id, _some_id(rig), "junk"):
        request = csi_pb2.ControllerUnpublishVolumeRequest(volume_id=handle, node_id="node-a")
        rig.served.controller.ControllerUnpublishVolume(request, timeout=SECONDS)


@pytest.mark.ceph
@pytest.mark.parametrize("mode", ["SINGLE_NODE_SINGLE_WRITER", "SINGLE_NODE_MULTI_WRITER"])
def test_the_modes_of_one_node_with_one_or_many_writers_are_served(rig: RbdRig, mode: str) -> None:
    use = mounted(csi_pb2.VolumeCapability.AccessMode.Mode.Value(mode))
    volume = rig.create("pvc-1", volume_capabilities=[use])
    request = csi_pb2.ValidateVolumeCapabilitiesRequest(
        volume_id=volume.volume_id, volume_capabilities=[use], secrets=rig.secrets
    )
    answer = rig.served.controller.ValidateVolumeCapabilities(request, timeout=SECONDS)
    assert list(answer.confirmed.volume_capabilities) == [use]
