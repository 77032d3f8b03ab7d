import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from csi_host.errors import CsiError, InvalidArgument
from csi_host.kms import KmsRequest, KmsTypes, KmsTypeUnknown
from csi_host_rbd.encryption.parameters import EncryptionParameters
from csi_host_rbd.encryption.providers import built_in_kms_types
from csi_host_rbd.encryption.sections import KmsFileInvalid, KmsNotConfigured, KmsSections, Section
from csi_host_rbd.encryption.service import Encryption

_TYPES = KmsTypes((each, "csi-host") for each in built_in_kms_types())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.json"


def _write(file: Path, sections: Any) -> None:
    # As a ConfigMap changes: a new file takes the old one's place.
    new = file.with_suffix(".new")
    new.write_text(json.dumps(sections))
    new.replace(file)


@pytest.mark.parametrize("member", ["encryptionKMSType", "KMS_PROVIDER"])
def test_a_section_is_found_with_its_type_under_both_names(file: Path, member: str) -> None:
    _write(file, {"other": {}, "mine": {member: "vault", "vaultAddress": "https://v:8200"}})
    assert KmsSections(file).find("mine") == Section(
        kms_id="mine", type_name="vault", members={"vaultAddress": "https://v:8200"}
    )


def test_ceph_csi_s_own_name_for_the_type_goes_first(file: Path) -> None:
    _write(file, {"mine": {"KMS_PROVIDER": "other", "encryptionKMSType": "metadata"}})
    assert KmsSections(file).find("mine").type_name == "metadata"


def test_an_edit_needs_no_restart_and_one_that_leaves_size_and_time_is_seen_too(file: Path) -> None:
    sections = KmsSections(file)
    _write(file, {"mine": {"encryptionKMSType": "a"}})
    before = file.stat()
    assert sections.find("mine").type_name == "a"
    _write(file, {"mine": {"encryptionKMSType": "b"}})
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert sections.find("mine").type_name == "b"
    file.write_text("{")
    with pytest.raises(KmsFileInvalid):
        sections.find("mine")
    _write(file, {"mine": {"encryptionKMSType": "c"}})
    assert sections.find("mine").type_name == "c"
    file.unlink()
    with pytest.raises(KmsNotConfigured, match="there is no file"):
        sections.find("mine")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"mine": {"hidden-word": ', "line 1"),
        ('["hidden-word"]', "expected an object of sections"),
        ('{"mine": "hidden-word"}', "KMS ID 'mine': expected an object"),
        ('{"mine": {"encryptionKMSTyp": "hidden-word"}}', "encryptionKMSType: expected the name of a type"),
        ('{"mine": {"encryptionKMSType": ["hidden-word"]}}', "encryptionKMSType: expected the name of a type"),
        ('{"mine": {"encryptionKMSType": "", "KMS_PROVIDER": "hidden-word"}}', "expected the name of a type"),
        ("[" * 100_000, "its text"),
    ],
)
def test_what_is_wrong_is_named_with_the_file_and_without_its_text(file: Path, text: str, why: str) -> None:
    file.write_text(text)
    with pytest.raises(KmsFileInvalid, match=why) as caught:
        KmsSections(file).find("mine")
    assert str(file) in str(caught.value)
    assert "hidden-word" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_file_that_is_not_text_is_named(file: Path) -> None:
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(KmsFileInvalid, match="UTF-8"):
        KmsSections(file).find("mine")


@pytest.mark.parametrize("kms_id", ["default", ""])
def test_the_default_kms_needs_no_file_and_believes_none(file: Path, kms_id: str) -> None:
    _write(file, {"default": {"encryptionKMSType": "vault"}})
    encryption = Encryption(kms_types=_TYPES, sections=KmsSections(file))
    wanted = EncryptionParameters(kms_id=kms_id or "default")
    keys = encryption.keys_of_class(wanted, {"encryptionPassphrase": "secret"}, owner="")
    assert keys is not None
    assert keys.passphrase({}, "any").reveal() == "secret"


def test_an_unknown_id_is_an_invalid_argument_that_names_the_parameter(file: Path) -> None:
    _write(file, {"mine": {"encryptionKMSType": "metadata"}})
    encryption = Encryption(kms_types=_TYPES, sections=KmsSections(file))
    with pytest.raises(InvalidArgument, match=r"parameters\[encryptionKMSID\]: missing configuration .*'theirs'"):
        encryption.keys_of_class(EncryptionParameters(kms_id="theirs"), {}, owner="")


@pytest.mark.parametrize("name", ["vaulttokens", "kmip", "aws-metadata"])
def test_a_type_that_no_plugin_brings_is_named_with_those_there_are(file: Path, name: str) -> None:
    _write(file, {"mine": {"encryptionKMSType": name}})
    encryption = Encryption(kms_types=_TYPES, sections=KmsSections(file))
    with pytest.raises(KmsTypeUnknown, match=rf"type '{name}'; there are: default, metadata, vault"):
        encryption.keys_of_class(EncryptionParameters(kms_id="mine"), {}, owner="")


_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=8) | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_MEMBERS = st.sampled_from(
    ["encryptionKMSType", "KMS_PROVIDER", "vaultAddress", "vaultBackend", "vaultCAVerify", "vaultDestroyKeys",
     "vaultTokenFile",
     "vaultCAFile", "vaultAuthPath", "vaultNamespace", "vaultCAFromSecret", "secretName"]
)  # fmt: skip
_TEXTS = st.sampled_from(
    ["vault", "metadata", "default", "https://[", "http://v:99999999", "https://v", "/no/file", "kv"]
)
_SECTIONS = st.builds(
    lambda type_name, address, members: members | {"encryptionKMSType": type_name, "vaultAddress": address},
    st.sampled_from(["vault", "metadata"]) | _JSON,
    st.sampled_from(["https://v:8200"]) | _TEXTS | _JSON,
    st.dictionaries(_MEMBERS, _TEXTS | _JSON, max_size=4),
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    document=st.text()
    | st.fixed_dictionaries({"mine": _SECTIONS | st.dictionaries(st.text(max_size=8), _JSON) | _JSON}).map(json.dumps)
)
def test_whatever_is_in_the_file_the_call_ends_with_an_error_of_csi_or_a_kms(tmp_path: Path, document: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(document, encoding="utf-8", errors="replace")
    encryption = Encryption(kms_types=_TYPES, sections=KmsSections(path))
    secrets = {"encryptionPassphrase": "hidden-word", "vaultToken": "hidden-word"}
    said = ""
    try:
        encryption.keys_of_class(EncryptionParameters(kms_id="mine"), secrets, owner="")
    except CsiError as error:
        said = str(error)
    assert "hidden-word" not in said


def test_a_third_party_s_kms_gets_its_section_the_secrets_and_the_tenant(file: Path) -> None:
    _write(file, {"mine": {"KMS_PROVIDER": "metadata", "secretName": ""}})
    seen: list[KmsRequest] = []
    metadata = _TYPES.find("metadata")

    def create(request: KmsRequest) -> Any:
        seen.append(request)
        return metadata.create(KmsRequest(kms_id=request.kms_id, secrets=request.secrets))

    types = KmsTypes([(type(metadata)(name="metadata", summary="theirs", create=create), "theirs 1")])
    encryption = Encryption(kms_types=types, sections=KmsSections(file))
    encryption.keys_of_class(EncryptionParameters(kms_id="mine"), {"key": "value"}, owner="shop")
    assert seen == [KmsRequest(kms_id="mine", section={"secretName": ""}, secrets={"key": "value"}, tenant="shop")]
