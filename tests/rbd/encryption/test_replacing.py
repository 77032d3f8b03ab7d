"""A volume's passphrase is replaced by another one, in each kind of KMS."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from csi_host.errors import CsiError
from csi_host.kms import KmsRequest, Passphrase, PassphraseCannotChange, PassphraseChanged, PassphraseNotFound
from csi_host_rbd.encryption.secret_kms import Derivation, MetadataKms, SecretKms

_HANDLE = "0001-0006-ceph-a-0000000000000003-2a7c9c3e-0d5f-4c0e-9a52-6f0b7a1d9e11"
_OLD, _NEW, _OTHER = Passphrase("hidden-1"), Passphrase("hidden-2"), Passphrase("hidden-3")
_SECRETS = {"encryptionPassphrase": "the class's"}


def test_vault_has_the_new_one_in_the_same_place(engine: Any) -> None:
    kms = engine.kms()
    kms.store(_HANDLE, _OLD)
    assert kms.replace(_HANDLE, _NEW, known=_OLD, beside="") == ""
    assert kms.fetch(_HANDLE, "") == _NEW
    _, document = engine.ask("GET", engine.path(_HANDLE))
    content = document["data"]["data"] if engine.version == 2 else document["data"]
    assert content == {"data": {"passphrase": _NEW.reveal()}}


def test_vault_keeps_what_is_not_the_known_one(engine: Any) -> None:
    kms = engine.kms()
    with pytest.raises(PassphraseNotFound):
        kms.replace(_HANDLE, _NEW, known=_OLD, beside="")
    kms.store(_HANDLE, _OTHER)
    with pytest.raises(PassphraseChanged) as caught:
        kms.replace(_HANDLE, _NEW, known=_OLD, beside="")
    assert kms.fetch(_HANDLE, "") == _OTHER
    for secret in (_OLD, _NEW, _OTHER):
        assert secret.reveal() not in str(caught.value)


def test_of_several_at_once_one_replaces_where_the_engine_can_check_and_set(engine: Any) -> None:
    if engine.version == 1:
        pytest.skip("the older engine cannot: the lock of the volume is all there is")
    engine.kms().store(_HANDLE, _OLD)

    def replace(number: int) -> bool:
        try:
            engine.kms().replace(_HANDLE, Passphrase(f"new {number}"), known=_OLD, beside="")
        except PassphraseChanged:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        done = list(threads.map(replace, range(8)))
    assert done.count(True) == 1
    assert engine.kms().fetch(_HANDLE, "") == Passphrase(f"new {done.index(True)}")


def test_what_is_beside_the_image_is_wrapped_anew_for_its_handle() -> None:
    kms = MetadataKms(KmsRequest(kms_id="m", secrets=_SECRETS), Derivation())
    before = kms.store(_HANDLE, _OLD)
    after = kms.replace(_HANDLE, _NEW, known=_OLD, beside=before)
    assert kms.fetch(_HANDLE, after) == _NEW
    with pytest.raises(PassphraseChanged):
        kms.replace(_HANDLE, _NEW, known=_OTHER, beside=before)


def test_the_passphrase_of_all_volumes_is_not_one_volume_s_to_replace() -> None:
    kms = SecretKms(KmsRequest(kms_id="default", secrets=_SECRETS))
    with pytest.raises(PassphraseCannotChange) as caught:
        kms.replace(_HANDLE, _NEW, known=kms.common_passphrase, beside="")
    assert isinstance(caught.value, CsiError)
    assert kms.fetch(_HANDLE, "") == Passphrase("the class's")
