import base64
import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from csi_host.errors import InvalidArgument
from csi_host.kms import KmsMisconfigured, KmsRequest, KmsTypes, Passphrase, PassphraseUnreadable
from csi_host_rbd.encryption.providers import built_in_kms_types
from csi_host_rbd.encryption.secret_kms import Derivation, MetadataKms, SecretKms

_SECRET = "correct horse battery stäple"
_HANDLE = "0001-0006-ceph-a-0000000000000003-2a7c9c3e-0d5f-4c0e-9a52-6f0b7a1d9e11"
_PLAIN = "AAECAwQFBgcICQoLDA0ODxAREhM="
# Made by Go's own x/crypto/scrypt, crypto/aes and encoding/json, in ceph-csi's layout, with the nonce 00 01 … 0b.
_BY_GO = '{"dek":"/OAtJUW8ApmBRIBMFxMbt/qi5yCP4DPbO3qrAv/YJnGJtFtPJwP52NGEQEs=","nonce":"AAECAwQFBgcICQoL"}'


@pytest.fixture(scope="module")
def metadata_kms() -> Callable[..., MetadataKms]:
    derivation = Derivation()

    def make(secret: str = _SECRET, **section: str) -> MetadataKms:
        secrets = {"encryptionPassphrase": secret} if secret else {}
        return MetadataKms(KmsRequest(kms_id="m", section=section, secrets=secrets), derivation)

    return make


def test_a_passphrase_that_go_wrapped_is_unwrapped(metadata_kms: Callable[..., MetadataKms]) -> None:
    assert metadata_kms().fetch(_HANDLE, _BY_GO) == Passphrase(_PLAIN)


def test_what_is_wrapped_has_ceph_csi_s_layout(metadata_kms: Callable[..., MetadataKms]) -> None:
    wrapped = metadata_kms().store(_HANDLE, Passphrase(_PLAIN))
    members = json.loads(wrapped)
    assert list(members) == ["dek", "nonce"]
    key = hashlib.scrypt(_SECRET.encode(), salt=_HANDLE.encode(), n=32768, r=8, p=1, maxmem=64 * 1024 * 1024, dklen=32)
    nonce, sealed = base64.b64decode(members["nonce"]), base64.b64decode(members["dek"])
    assert len(nonce) == 12
    assert AESGCM(key).decrypt(nonce, sealed, None) == _PLAIN.encode()


def test_no_two_wrappings_are_the_same(metadata_kms: Callable[..., MetadataKms]) -> None:
    kms = metadata_kms()
    assert kms.store(_HANDLE, Passphrase(_PLAIN)) != kms.store(_HANDLE, Passphrase(_PLAIN))


@pytest.mark.parametrize(("handle", "secret"), [(_HANDLE[:-1] + "2", _SECRET), (_HANDLE, "hidden-word")])
def test_another_handle_or_secret_does_not_unwrap_it(
    metadata_kms: Callable[..., MetadataKms], handle: str, secret: str
) -> None:
    with pytest.raises(PassphraseUnreadable, match="cannot be unwrapped") as caught:
        metadata_kms(secret).fetch(handle, _BY_GO)
    assert secret not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "damaged",
    [
        "",
        "{}",
        "null",
        "[]",
        '"text"',
        "[" * 100_000,
        '{"dek":"","nonce":"AAECAwQFBgcICQoL"}',
        '{"dek":"AAAA","nonce":""}',
        '{"dek":"AAAA","nonce":5}',
        '{"dek":["AAAA"],"nonce":"AAECAwQFBgcICQoL"}',
        '{"dek":"%%%%","nonce":"AAECAwQFBgcICQoL"}',
        '{"dek":"AAAA","nonce":"AAECAwQFBgcICQoL"}',
        _BY_GO.replace("/O", "/P"),
        _BY_GO[:-20],
    ],
)
def test_a_damaged_one_is_unreadable(metadata_kms: Callable[..., MetadataKms], damaged: str) -> None:
    with pytest.raises(PassphraseUnreadable):
        metadata_kms().fetch(_HANDLE, damaged)


@settings(max_examples=200, deadline=None)
@given(
    st.text()
    | st.dictionaries(st.sampled_from(["dek", "nonce"]), st.text() | st.none() | st.integers()).map(json.dumps)
)
def test_whatever_lies_there_is_unreadable_and_nothing_worse(text: str) -> None:
    kms = MetadataKms(KmsRequest(kms_id="m", secrets={"encryptionPassphrase": _SECRET}), Derivation())
    with pytest.raises(PassphraseUnreadable):
        kms.fetch(_HANDLE, text)


@pytest.mark.parametrize("type_name", ["default", "metadata"])
def test_without_the_secret_s_passphrase_only_removing_works(type_name: str) -> None:
    kms_type = KmsTypes((each, "csi-host") for each in built_in_kms_types()).find(type_name)
    kms = kms_type.create(KmsRequest(kms_id="m", secrets={"encryptionPassphrase": ""}))
    kms.remove(_HANDLE)
    uses: list[Callable[[], object]] = [kms.check, lambda: kms.fetch(_HANDLE, _BY_GO)]
    for use in uses:
        with pytest.raises(InvalidArgument, match="secrets: expected encryptionPassphrase"):
            use()


def test_the_default_kms_has_the_secret_s_passphrase_for_every_volume_and_keeps_no_other() -> None:
    kms = SecretKms(KmsRequest(kms_id="default", secrets={"encryptionPassphrase": _SECRET}))
    kms.check()
    assert kms.common_passphrase == kms.fetch("any", "") == Passphrase(_SECRET)
    assert kms.store("any", Passphrase(_SECRET)) == ""
    with pytest.raises(ValueError, match="cannot keep another"):
        kms.store("any", Passphrase("another"))


@pytest.mark.parametrize("member", ["secretName", "secretNamespace", "secretNam"])
def test_a_member_without_effect_is_refused_by_name(metadata_kms: Callable[..., MetadataKms], member: str) -> None:
    with pytest.raises(KmsMisconfigured, match=f"KMS 'm': {member}: "):
        metadata_kms(**{member: "hidden-word"})


def test_many_at_once_get_their_own(metadata_kms: Callable[..., MetadataKms]) -> None:
    kms = metadata_kms()

    def around(number: int) -> bool:
        passphrase = Passphrase(f"passphrase {number}")
        return kms.fetch(str(number), kms.store(str(number), passphrase)) == passphrase

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(around, range(4)))
