"""Encrypted volumes on a real Ceph, looked at with Ceph's own tools."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from csi_host.kms import KmsRequest, Passphrase
from csi_host.proto import csi_pb2
from csi_host_rbd.encryption.secret_kms import Derivation, MetadataKms
from csi_host_rbd.testing import ceph_csi
from csi_host_rbd.testing.pools import PoolView
from csi_host_rbd.testing.rig import GIB, SECONDS, RbdRig, mounted, rbd_rig
from csi_host_rbd.testing.vault import VaultServer, serving_vault

pytestmark = pytest.mark.ceph

_STATE, _DEK = "rbd.csi.ceph.com/encrypted", "rbd.csi.ceph.com/dek"
_SECRET = "the class's own passphrase"


@pytest.fixture
def vault() -> Iterator[VaultServer]:
    with serving_vault() as server:
        yield server


@pytest.fixture
def rig(pool: PoolView, tmp_path: Path, vault: VaultServer) -> Iterator[RbdRig]:
    """The rbd driver with a KMS of each type; every call's secret has what they need."""
    sections = {
        "wrapping": {"encryptionKMSType": "metadata"},
        "vault-1": {"encryptionKMSType": "vault", "vaultAddress": vault.address, "vaultPassphrasePath": "csi"},
    }
    (tmp_path / "kms.json").write_text(json.dumps(sections))
    with rbd_rig(pool, tmp_path) as one:
        one.secrets.update({"encryptionPassphrase": _SECRET, "vaultToken": vault.root_token})
        yield one


def _class(rig: RbdRig, kms_id: str = "", **changes: str) -> dict[str, str]:
    named = {"encryptionKMSID": kms_id} if kms_id else {}
    return rig.parameters(encrypted="true", **named, **changes)


def _image(volume_id: str) -> str:
    return f"csi-vol-{volume_id[-36:]}"


def _entry(volume_id: str) -> str:
    return f"csi.volume.{volume_id[-36:]}"


def _unwrapped(volume_id: str, dek: str) -> Passphrase:
    secrets = {"encryptionPassphrase": _SECRET}
    return MetadataKms(KmsRequest(kms_id="m", secrets=secrets), Derivation()).fetch(volume_id, dek)


def _assert_nothing_is_left(pool: PoolView) -> None:
    assert pool.journal() == {"csi.volumes.default": {}}
    assert pool.images() == []
    pool.wait_until_trash_is_empty()


@pytest.mark.parametrize("kms_id", ["", "wrapping", "vault-1"])
def test_an_encrypted_volume_has_the_keys_that_ceph_csi_reads(rig: RbdRig, vault: VaultServer, kms_id: str) -> None:
    volume = rig.create("pvc-1", parameters=_class(rig, kms_id))
    keys = rig.pool.journal()[_entry(volume.volume_id)]
    assert keys["csi.volume.encryptKMS"] == (kms_id or "default")
    assert keys["csi.volume.encryptionType"] == "block"
    metadata = rig.pool.metadata(_image(volume.volume_id))
    assert metadata[_STATE] == "encryptionPrepared"
    assert (_DEK in metadata) == (kms_id == "wrapping")
    if kms_id == "wrapping":
        assert len(_unwrapped(volume.volume_id, metadata[_DEK]).reveal()) == 28
    stored = {path: secret.versions for (_, path), secret in vault.secrets.items()}
    if kms_id == "vault-1":
        ((path, [version]),) = stored.items()
        assert path == f"secret/csi/{volume.volume_id}"
        assert version is not None
        assert len(version["data"]["passphrase"]) == 28
    else:
        assert stored == {}
    assert volume.volume_context["encrypted"] == "true"
    rig.delete(volume.volume_id)
    _assert_nothing_is_left(rig.pool)
    assert vault.secrets == {}


@pytest.mark.parametrize("kms_id", ["", "wrapping", "vault-1"])
def test_17_8_a_retry_changes_neither_passphrase_nor_state(rig: RbdRig, vault: VaultServer, kms_id: str) -> None:
    volume = rig.create("pvc-1", parameters=_class(rig, kms_id))
    image = _image(volume.volume_id)
    rig.pool.rbd("image-meta", "set", image, _STATE, "encrypted")
    before, asked = rig.pool.metadata(image), len(vault.asked)
    assert rig.create("pvc-1", parameters=_class(rig, kms_id)).volume_id == volume.volume_id
    assert rig.pool.metadata(image) == before
    assert len(vault.asked) == asked


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({}, {"encrypted": "true"}),
        ({"encrypted": "true"}, {}),
        ({"encrypted": "true"}, {"encrypted": "true", "encryptionKMSID": "wrapping"}),
        ({"encrypted": "true", "encryptionKMSID": "wrapping"}, {"encrypted": "true", "encryptionKMSID": "default"}),
    ],
)
def test_the_same_name_with_another_encryption_exists_already(
    rig: RbdRig, first: dict[str, str], then: dict[str, str]
) -> None:
    volume = rig.create("pvc-1", parameters=rig.parameters(**first))
    before = rig.pool.metadata(_image(volume.volume_id))
    with pytest.raises(grpc.RpcError) as caught:
        rig.create("pvc-1", parameters=rig.parameters(**then))
    assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
    assert rig.pool.metadata(_image(volume.volume_id)) == before


@pytest.mark.parametrize("keys", [{"csi.volume.encryptKMS": "wrapping"}, {}])
def test_17_13_a_volume_from_before_the_type_was_written_counts_as_encrypted_by_block(
    rig: RbdRig, keys: dict[str, str]
) -> None:
    theirs = ceph_csi.make_volume(rig.pool, "pvc-1")
    for key, value in keys.items():
        rig.pool.set_key(f"csi.volume.{theirs.uuid}", key, value)
    rig.pool.rbd("image-meta", "set", theirs.image, f".{_STATE}", "requiresEncryption")
    before = rig.pool.metadata(theirs.image)
    wanted = _class(rig, "wrapping") if keys else rig.parameters()
    assert rig.create("pvc-1", parameters=wanted).volume_id == theirs.volume_id
    assert rig.pool.metadata(theirs.image) == before
    rig.expand(theirs.volume_id, 2 * GIB)
    assert rig.pool.metadata(theirs.image) == before
    rig.delete(theirs.volume_id)
    _assert_nothing_is_left(rig.pool)


def test_a_volume_that_ceph_csi_encrypts_by_file_is_not_taken_for_ours_and_is_deleted(rig: RbdRig) -> None:
    theirs = ceph_csi.make_volume(rig.pool, "pvc-1")
    rig.pool.set_key(f"csi.volume.{theirs.uuid}", "csi.volume.encryptKMS", "default")
    rig.pool.set_key(f"csi.volume.{theirs.uuid}", "csi.volume.encryptionType", "file")
    with pytest.raises(grpc.RpcError, match="by type 'file'"):
        rig.create("pvc-1", parameters=_class(rig))
    rig.delete(theirs.volume_id)
    _assert_nothing_is_left(rig.pool)


@pytest.mark.parametrize("steps", [3, 4, 5, 6])
def test_an_encrypted_volume_that_ceph_csi_did_not_finish_is_finished(rig: RbdRig, steps: int) -> None:
    theirs = ceph_csi.make_volume(rig.pool, "pvc-1", steps=steps)
    rig.pool.set_key(f"csi.volume.{theirs.uuid}", "csi.volume.encryptKMS", "wrapping")
    rig.pool.set_key(f"csi.volume.{theirs.uuid}", "csi.volume.encryptionType", "block")
    volume = rig.create("pvc-1", parameters=_class(rig, "wrapping"))
    assert volume.volume_id == theirs.volume_id
    metadata = rig.pool.metadata(theirs.image)
    assert metadata[_STATE] == "encryptionPrepared"
    assert _unwrapped(theirs.volume_id, metadata[_DEK])


@pytest.mark.parametrize(
    ("changes", "code", "named"),
    [
        ({"encryptionType": "file"}, "INVALID_ARGUMENT", r"parameters\[encryptionType\]: 'file'"),
        ({"encryptionKMSID": "theirs"}, "INVALID_ARGUMENT", r"parameters\[encryptionKMSID\]: missing configuration"),
    ],
)
def test_what_is_not_served_is_refused_before_anything_is_made(
    rig: RbdRig, changes: dict[str, str], code: str, named: str
) -> None:
    with pytest.raises(grpc.RpcError, match=named) as caught:
        rig.create("pvc-1", parameters=_class(rig, **changes))
    assert caught.value.code().name == code
    assert rig.pool.journal() == {}


@pytest.mark.parametrize("kms_id", ["", "wrapping"])
def test_a_secret_without_the_passphrase_is_refused_before_anything_is_made(rig: RbdRig, kms_id: str) -> None:
    secrets = {name: value for name, value in rig.secrets.items() if name != "encryptionPassphrase"}
    with pytest.raises(grpc.RpcError, match="secrets: expected encryptionPassphrase") as caught:
        rig.create("pvc-1", parameters=_class(rig, kms_id), secrets=secrets)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert rig.pool.journal() == {}


def test_while_the_kms_is_down_nothing_is_made_and_deleting_waits_for_it(rig: RbdRig, vault: VaultServer) -> None:
    vault.is_sealed = True
    with pytest.raises(grpc.RpcError, match="status 503") as caught:
        rig.create("pvc-1", parameters=_class(rig, "vault-1"))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    vault.is_sealed = False
    volume = rig.create("pvc-1", parameters=_class(rig, "vault-1"))
    vault.is_sealed = True
    with pytest.raises(grpc.RpcError) as caught:
        rig.delete(volume.volume_id)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert _entry(volume.volume_id) in rig.pool.journal()
    vault.is_sealed = False
    rig.delete(volume.volume_id)
    _assert_nothing_is_left(rig.pool)
    assert vault.secrets == {}


def test_a_kms_that_goes_down_in_between_leaves_what_the_retry_goes_on_with(rig: RbdRig, vault: VaultServer) -> None:
    rig.create("warm-up", parameters=_class(rig, "vault-1"))
    # The engine's version is known by now: the first thing that is asked is to store.
    vault.loses_answers = True
    with pytest.raises(grpc.RpcError) as caught:
        rig.create("pvc-1", parameters=_class(rig, "vault-1"))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    vault.loses_answers = False
    left = {path: list(secret.versions) for (_, path), secret in vault.secrets.items()}
    volume = rig.create("pvc-1", parameters=_class(rig, "vault-1"))
    assert {path: secret.versions for (_, path), secret in vault.secrets.items()} == left
    assert rig.pool.metadata(_image(volume.volume_id))[_STATE] == "encryptionPrepared"


def test_a_kms_that_refuses_leaves_nothing(rig: RbdRig, vault: VaultServer) -> None:
    rig.delete(rig.create("warm-up", parameters=_class(rig, "vault-1")).volume_id)
    vault.tokens.clear()
    with pytest.raises(grpc.RpcError, match="refused with status 403") as caught:
        rig.create("pvc-1", parameters=_class(rig, "vault-1"))
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    _assert_nothing_is_left(rig.pool)


@pytest.mark.parametrize("trouble", ["forbidden", "not configured", "no such type"])
def test_a_kms_that_refuses_for_good_does_not_keep_a_volume_from_being_deleted(
    rig: RbdRig, vault: VaultServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    volume = rig.create("pvc-1", parameters=_class(rig, "vault-1"))
    if trouble == "forbidden":
        vault.tokens.clear()
    elif trouble == "not configured":
        (tmp_path / "kms.json").unlink()
    else:
        (tmp_path / "kms.json").write_text('{"vault-1": {"encryptionKMSType": "gone"}}')
    rig.delete(volume.volume_id)
    _assert_nothing_is_left(rig.pool)
    assert f"the passphrase of {volume.volume_id} may be left behind" in caplog.text
    assert vault.root_token not in caplog.text


def test_deleting_needs_no_passphrase_in_the_secret(rig: RbdRig) -> None:
    del rig.secrets["vaultToken"]
    for kms_id in ("", "wrapping"):
        volume = rig.create(f"pvc-{kms_id}", parameters=_class(rig, kms_id))
        passphrase = rig.secrets.pop("encryptionPassphrase")
        rig.delete(volume.volume_id)
        rig.secrets["encryptionPassphrase"] = passphrase
    _assert_nothing_is_left(rig.pool)


def test_a_deletion_that_was_cut_off_before_a_new_volume_of_the_name_takes_its_passphrase_along(
    rig: RbdRig, vault: VaultServer
) -> None:
    first = rig.create("pvc-1", parameters=_class(rig, "vault-1"))
    rig.pool.rbd("trash", "mv", _image(first.volume_id))
    second = rig.create("pvc-1", parameters=_class(rig, "vault-1"))
    assert second.volume_id != first.volume_id
    assert [path for _, path in vault.secrets] == [f"secret/csi/{second.volume_id}"]


def test_two_volumes_have_two_passphrases(rig: RbdRig) -> None:
    volumes = [rig.create(name, parameters=_class(rig, "wrapping")).volume_id for name in ("one", "two")]
    found = [_unwrapped(volume, rig.pool.metadata(_image(volume))[_DEK]) for volume in volumes]
    assert found[0] != found[1]


@pytest.mark.parametrize("read", ["ControllerExpandVolume", "ValidateVolumeCapabilities", "CreateVolume"])
def test_17_29_reading_the_state_under_its_first_name_writes_nothing(rig: RbdRig, read: str) -> None:
    volume = rig.create("pvc-1", parameters=_class(rig, "wrapping"))
    image = _image(volume.volume_id)
    for name in (_STATE, _DEK):
        rig.pool.rbd("image-meta", "set", image, f".{name}", rig.pool.metadata(image)[name])
        rig.pool.rbd("image-meta", "remove", image, name)
    before = rig.pool.metadata(image)
    calls: dict[str, Callable[[], object]] = {
        "ControllerExpandVolume": lambda: rig.expand(volume.volume_id, 2 * GIB),
        "ValidateVolumeCapabilities": lambda: rig.served.controller.ValidateVolumeCapabilities(
            csi_pb2.ValidateVolumeCapabilitiesRequest(
                volume_id=volume.volume_id, volume_capabilities=[mounted()], secrets=rig.secrets
            ),
            timeout=SECONDS,
        ),
        "CreateVolume": lambda: rig.create("pvc-1", parameters=_class(rig, "wrapping")),
    }
    calls[read]()
    assert rig.pool.metadata(image) == before


def test_what_encryption_costs_is_counted(rig: RbdRig) -> None:
    for kms_id in ("wrapping", "vault-1"):
        rig.delete(rig.create("warm-up", parameters=_class(rig, kms_id)).volume_id)
        with rig.counter.counting() as creation:
            volume = rig.create("pvc-1", parameters=_class(rig, kms_id))
        with rig.counter.counting() as deletion:
            rig.delete(volume.volume_id)
        # 12 of a volume's own; a read-write open with its watch, the metadata read, one or two keys written.
        assert creation.operations <= 36
        assert deletion.operations <= 36


@pytest.mark.parametrize("kms_id", ["default", "wrapping", "vault-1"])
def test_no_passphrase_token_or_key_is_in_the_log_at_debug(
    rig: RbdRig, vault: VaultServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, kms_id: str
) -> None:
    account = tmp_path / "account"
    account.write_text("token-of-the-service-account")
    vault.service_accounts.add("token-of-the-service-account")
    del rig.secrets["vaultToken"]
    sections = json.loads((tmp_path / "kms.json").read_text())
    sections["vault-1"]["vaultServiceAccountTokenFile"] = str(account)
    (tmp_path / "kms.json").write_text(json.dumps(sections))
    with caplog.at_level(logging.DEBUG):
        volume = rig.create("pvc-1", parameters=_class(rig, kms_id)).volume_id
        clone = rig.clone(volume, "pvc-2", parameters=_class(rig, kms_id)).volume_id
        wrapped = rig.pool.metadata(_image(volume)).get(_DEK, "")
        stored = [
            content["data"]["passphrase"] for one in vault.secrets.values() for content in one.versions if content
        ]
        vault.is_sealed = True
        for secrets in (
            rig.secrets,
            rig.secrets | {"encryptionPassphrase": "another"},
            {**rig.secrets, "userKey": "no"},
        ):
            with suppress(grpc.RpcError):
                rig.clone(volume, "pvc-3", parameters=_class(rig, kms_id), secrets=secrets)
        vault.is_sealed = False
        rig.delete(clone)
    assert "CreateVolume" in caplog.text
    assert len(stored) == (2 if kms_id == "vault-1" else 0)
    own = [_unwrapped(volume, wrapped).reveal()] if wrapped else []
    hidden = [_SECRET, rig.secrets["userKey"], account.read_text(), *vault.tokens, *stored, *own]
    texts = [caplog.text, *(repr(vars(record)) for record in caplog.records)]
    assert not [word for word in hidden for text in texts if word in text]
