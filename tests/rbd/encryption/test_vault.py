import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from csi_host.errors import CsiError, DeadlineExceeded, InvalidArgument
from csi_host.kms import (
    Kms,
    KmsForbidden,
    KmsMisconfigured,
    KmsRequest,
    KmsUnavailable,
    Passphrase,
    PassphraseExists,
    PassphraseNotFound,
)
from csi_host.process import run
from csi_host.request import Request, serving
from csi_host_rbd.encryption.vault import VaultServers
from csi_host_rbd.testing.vault import VaultServer, serving_vault

_HANDLE = "0001-0006-ceph-a-0000000000000003-2a7c9c3e-0d5f-4c0e-9a52-6f0b7a1d9e11"
_PASSPHRASE = Passphrase("AAECAwQFBgcICQoLDA0ODxAREhM=")

KmsOf = Callable[..., Kms]


# On a real server as well, see conftest.py.


def test_a_passphrase_lies_where_ceph_csi_looks_for_it(engine: Any) -> None:
    kms = engine.kms()
    kms.check()
    assert kms.store(_HANDLE, _PASSPHRASE) == ""
    status, document = engine.ask("GET", engine.path(_HANDLE))
    content = document["data"]["data"] if engine.version == 2 else document["data"]
    assert (status, content) == (200, {"data": {"passphrase": _PASSPHRASE.reveal()}})
    assert kms.fetch(_HANDLE, "") == _PASSPHRASE


def test_what_ceph_csi_stored_is_read_below_its_path(engine: Any) -> None:
    content = {"data": {"passphrase": "theirs"}}
    body = {"data": content} if engine.version == 2 else content
    engine.ask("POST", engine.path(f"ceph-csi/{_HANDLE}"), body)
    named = "kv-v2" if engine.version == 2 else "kv"
    for section in ({"vaultPassphrasePath": "/ceph-csi/"}, {"vaultPassphrasePath": "ceph-csi", "vaultBackend": named}):
        assert engine.kms(**section).fetch(_HANDLE, "") == Passphrase("theirs")


def test_a_first_passphrase_is_never_replaced(engine: Any) -> None:
    kms = engine.kms()
    kms.store(_HANDLE, _PASSPHRASE)
    with pytest.raises(PassphraseExists, match=_HANDLE):
        kms.store(_HANDLE, Passphrase("another"))
    assert kms.fetch(_HANDLE, "") == _PASSPHRASE


@pytest.mark.parametrize("destroys", ["true", True, "false"])
def test_a_removed_passphrase_is_gone_for_good_or_as_the_section_says(engine: Any, destroys: object) -> None:
    kms = engine.kms(vaultDestroyKeys=destroys)
    kms.store(_HANDLE, _PASSPHRASE)
    kms.remove(_HANDLE)
    with pytest.raises(PassphraseNotFound):
        kms.fetch(_HANDLE, "")
    status, document = engine.ask("GET", engine.path(_HANDLE))
    assert status == 404
    is_kept = engine.version == 2 and destroys == "false"
    assert bool((document or {}).get("data")) == is_kept
    kms.remove(_HANDLE)


def test_after_a_deletion_that_was_not_for_good_there_is_room_again(engine: Any) -> None:
    kms = engine.kms(vaultDestroyKeys="false")
    for text in ("one", "two"):
        kms.store(_HANDLE, Passphrase(text))
        assert kms.fetch(_HANDLE, "") == Passphrase(text)
        kms.remove(_HANDLE)


def test_what_is_not_there_is_not_found_and_its_removal_is_fine(engine: Any) -> None:
    kms = engine.kms()
    kms.remove(_HANDLE)
    with pytest.raises(PassphraseNotFound, match=f"{engine.mount}/.*{_HANDLE}: there is none"):
        kms.fetch(_HANDLE, "")


@pytest.mark.parametrize("content", [{}, {"passphrase": "x"}, {"data": "x"}, {"data": {"passphrase": ""}}])
def test_something_else_in_its_place_is_not_a_passphrase(engine: Any, content: dict[str, Any]) -> None:
    engine.ask("POST", engine.path(_HANDLE), {"data": content} if engine.version == 2 else {"other": 1} | content)
    with pytest.raises(PassphraseNotFound, match=r"no data\.passphrase"):
        engine.kms().fetch(_HANDLE, "")


def test_a_token_that_the_server_does_not_know_is_refused_for_good(engine: Any) -> None:
    kms = engine.kms(secrets={"vaultToken": "hvs.hidden-word"}, vaultBackend="kv-v2")
    uses: list[Callable[[], object]] = [
        lambda: kms.fetch(_HANDLE, ""),
        lambda: kms.store(_HANDLE, _PASSPHRASE),
        lambda: kms.remove(_HANDLE),
    ]
    for use in uses:
        with pytest.raises(KmsForbidden, match="status 403") as caught:
            use()
        assert caught.value.is_final
        assert "hidden-word" not in str(caught.value)


def test_a_mount_that_is_not_there_is_refused_when_it_is_checked(engine: Any) -> None:
    with pytest.raises((KmsForbidden, KmsMisconfigured), match="asking for the engine at 'no-such-mount'"):
        engine.kms(vaultBackendPath="no-such-mount").check()


@pytest.mark.parametrize("engine", [2], indirect=True, ids=["kv-v2"])
def test_of_several_at_once_one_stores_where_the_engine_can_check_and_set(engine: Any) -> None:
    def store(number: int) -> str:
        try:
            engine.kms().store(_HANDLE, Passphrase(f"passphrase {number}"))
        except PassphraseExists:
            return ""
        return f"passphrase {number}"

    with ThreadPoolExecutor(8) as pool:
        (stored,) = filter(None, pool.map(store, range(8)))
    assert engine.kms().fetch(_HANDLE, "") == Passphrase(stored)


# On the test server alone: what has to be arranged.


def test_a_service_account_logs_in_once_and_again_when_its_token_was_revoked(
    vault: VaultServer, kms_of: KmsOf, tmp_path: Path
) -> None:
    account = tmp_path / "token"
    account.write_text("jwt-of-the-pod\n")
    vault.service_accounts.add("jwt-of-the-pod")
    section = {"vaultServiceAccountTokenFile": str(account), "vaultBackend": "kv-v2"}
    for handle in ("one", "two"):
        kms_of(vault, **section).store(handle, _PASSPHRASE)
    assert [asked.path for asked in vault.asked if asked.path.startswith("auth/")] == ["auth/kubernetes/login"]
    vault.revoke_logins()
    assert kms_of(vault, **section).fetch("one", "") == _PASSPHRASE
    assert len([asked for asked in vault.asked if asked.path == "auth/kubernetes/login"]) == 2


def test_a_login_is_made_anew_before_its_lease_ends(vault: VaultServer, kms_of: KmsOf, tmp_path: Path) -> None:
    account = tmp_path / "token"
    account.write_text("jwt-of-the-pod")
    vault.service_accounts.add("jwt-of-the-pod")
    vault.lease_seconds = 0
    kms = kms_of(vault, vaultServiceAccountTokenFile=str(account), vaultBackend="kv-v2")
    kms.check()
    kms.check()
    # No lease means that the token does not end soon.
    assert len(vault.asked) == 1


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("/v1/auth/kubernetes/login", "kubernetes"),
        ("/v1/auth/clusters/blue/login", "clusters/blue"),
        ("auth/blue/login/", "blue"),
        ("blue", "blue"),
    ],
)
def test_the_login_s_path_has_ceph_csi_s_forms(
    vault: VaultServer, kms_of: KmsOf, tmp_path: Path, text: str, mount: str
) -> None:
    account = tmp_path / "token"
    account.write_text("jwt")
    vault.service_accounts.add("jwt")
    vault.role = "mine"
    kms_of(vault, vaultAuthPath=text, vaultRole="mine", vaultServiceAccountTokenFile=str(account)).check()
    assert vault.asked[0].path == f"auth/{mount}/login"
    assert vault.asked[0].body == {"role": "mine", "jwt": "jwt"}


def test_a_login_that_is_refused_repeats_no_token(vault: VaultServer, kms_of: KmsOf, tmp_path: Path) -> None:
    account = tmp_path / "token"
    account.write_text("hidden-word-jwt")
    with pytest.raises(KmsForbidden, match="logging in as role 'csi-kubernetes' at auth/kubernetes") as caught:
        kms_of(vault, vaultServiceAccountTokenFile=str(account)).check()
    assert "hidden-word" not in str(caught.value)
    with pytest.raises(KmsMisconfigured, match="invalid role name other"):
        kms_of(vault, vaultServiceAccountTokenFile=str(account), vaultRole="other").check()


def test_a_token_comes_from_a_file_that_may_change_then_from_the_secret_then_from_a_login(
    vault: VaultServer, kms_of: KmsOf, tmp_path: Path
) -> None:
    file = tmp_path / "vault-token"
    file.write_text(vault.root_token + "\n")
    section = {"vaultTokenFile": str(file), "vaultBackend": "kv-v2"}
    kms_of(vault, {"vaultToken": "not this one"}, **section).store("one", _PASSPHRASE)
    file.write_text("wrong")
    with pytest.raises(KmsForbidden):
        kms_of(vault, {"vaultToken": vault.root_token}, **section).fetch("one", "")
    file.unlink()
    with pytest.raises(KmsUnavailable, match=f"vaultTokenFile: the token in {file} cannot be read: No such file"):
        kms_of(vault, **section).check()
    assert kms_of(vault, {"vaultToken": vault.root_token}, vaultBackend="kv-v2").fetch("one", "") == _PASSPHRASE
    assert not [asked for asked in vault.asked if asked.path.startswith("auth/")]


@pytest.mark.parametrize("token", ["two words", "two\nlines", "tökén"])
def test_a_token_that_no_header_carries_is_refused_unseen(vault: VaultServer, kms_of: KmsOf, token: str) -> None:
    with pytest.raises(KmsMisconfigured, match=r"secrets\[vaultToken\]: expected a token") as caught:
        kms_of(vault, {"vaultToken": token})
    assert token not in str(caught.value)
    assert vault.asked == []


def test_namespaces_of_login_and_secrets_go_as_headers(vault: VaultServer, kms_of: KmsOf, tmp_path: Path) -> None:
    account = tmp_path / "token"
    account.write_text("jwt")
    vault.service_accounts.add("jwt")
    section = {"vaultServiceAccountTokenFile": str(account), "vaultNamespace": "team/blue"}
    kms_of(vault, **section).store("one", _PASSPHRASE)
    assert {asked.namespace for asked in vault.asked} == {"team/blue"}
    vault.asked.clear()
    kms_of(vault, vaultAuthNamespace="team", **section).fetch("one", "")
    assert [asked.namespace for asked in vault.asked] == ["team", "team/blue", "team/blue"]


def test_the_older_names_of_the_engine_s_path_count(vault: VaultServer, kms_of: KmsOf) -> None:
    vault.engines = {"old": 2}
    secrets = {"vaultToken": vault.root_token}
    for root in ("/v1/old", "/v1/old/", "old"):
        kms_of(vault, secrets, vaultPassphraseRoot=root, vaultBackendPath="other").store(root, _PASSPHRASE)
    assert {asked.path.partition("/")[0] for asked in vault.asked} <= {"old", "sys"}


@pytest.mark.parametrize("status", ["sealed", "gone", "wrong port", "no name"])
def test_a_server_that_cannot_answer_is_unavailable_and_asked_again(
    vault: VaultServer, kms_of: KmsOf, status: str
) -> None:
    vault.is_sealed = status == "sealed"
    vault.loses_answers = status == "gone"
    address = {"wrong port": "http://127.0.0.1:1", "no name": "http://nobody.invalid:8200"}.get(status, vault.address)
    kms = kms_of(vault, {"vaultToken": vault.root_token}, vaultAddress=address, vaultBackend="kv-v2")
    uses: list[Callable[[], object]] = [
        lambda: kms.store(_HANDLE, _PASSPHRASE),
        lambda: kms.fetch(_HANDLE, ""),
        lambda: kms.remove(_HANDLE),
    ]
    for use in uses:
        with pytest.raises(KmsUnavailable, match=r"KMS 'vault-1': .* the server") as caught:
            use()
        assert not caught.value.is_final
        assert caught.value.__cause__ is None
        assert vault.root_token not in str(caught.value)


def test_a_write_whose_answer_is_lost_was_done_and_is_not_done_over(vault: VaultServer, kms_of: KmsOf) -> None:
    kms = kms_of(vault, {"vaultToken": vault.root_token}, vaultBackend="kv-v2")
    vault.loses_answers = True
    with pytest.raises(KmsUnavailable):
        kms.store(_HANDLE, _PASSPHRASE)
    vault.loses_answers = False
    with pytest.raises(PassphraseExists):
        kms.store(_HANDLE, Passphrase("another"))
    assert kms.fetch(_HANDLE, "") == _PASSPHRASE


def test_a_write_that_the_server_finds_wrong_is_refused_and_is_no_passphrase_that_exists(
    vault: VaultServer, kms_of: KmsOf
) -> None:
    vault.finds_wrong = "no such thing as hidden-word"
    kms = kms_of(vault, {"vaultToken": vault.root_token}, vaultBackend="kv-v2")
    with pytest.raises(KmsMisconfigured, match=r"storing the passphrase of .*: the server refused with status 400$"):
        kms.store(_HANDLE, Passphrase("hidden-word"))
    vault.finds_wrong = "quota"
    with pytest.raises(KmsMisconfigured, match="status 400: quota"):
        kms.store(_HANDLE, Passphrase("hidden-word"))


def test_a_server_that_hangs_costs_no_more_than_the_caller_s_time(kms_of: KmsOf) -> None:
    with serving_vault(holds=Event()) as vault:
        kms = kms_of(vault, {"vaultToken": vault.root_token}, vaultBackend="kv-v2")
        request = Request(rpc="CreateVolume", request_id="1")
        with serving(Request(rpc="CreateVolume", request_id="1", deadline=request.started + 0.5)):
            with pytest.raises(KmsUnavailable, match="did not answer in time"):
                kms.fetch(_HANDLE, "")
            with pytest.raises(DeadlineExceeded, match="reading the passphrase"):
                kms.fetch(_HANDLE, "")


def test_a_standby_s_redirection_is_followed_once(vault: VaultServer, kms_of: KmsOf) -> None:
    with serving_vault(redirects_to=vault.address) as standby:
        kms = kms_of(standby, {"vaultToken": vault.root_token})
        kms.store(_HANDLE, _PASSPHRASE)
        assert kms.fetch(_HANDLE, "") == _PASSPHRASE
        standby.redirects_to = standby.address
        with pytest.raises(KmsUnavailable, match="status 307"):
            kms.fetch(_HANDLE, "")


def test_a_token_follows_no_redirection_to_another_protocol(vault: VaultServer, certificate: Path) -> None:
    with serving_vault(str(certificate), redirects_to=vault.address) as secure:
        section = {"vaultAddress": secure.address, "vaultCAFile": str(certificate), "vaultBackend": "kv-v2"}
        request = KmsRequest(kms_id="v", section=section, secrets={"vaultToken": vault.root_token})
        with pytest.raises(KmsUnavailable, match="by another protocol"):
            VaultServers().create(request).fetch(_HANDLE, "")
    assert vault.asked == []


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate of localhost, with its key."""
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost,DNS:vault.example", "-keyout", f"{path}.key", "-out", f"{path}.crt"],
        timeout=60,
    )  # fmt: skip
    path.write_text(Path(f"{path}.key").read_text() + Path(f"{path}.crt").read_text())
    return path


def _authority(certificate: Path) -> str:
    return Path(f"{certificate}.crt").read_text()


@pytest.mark.parametrize(
    ("section", "is_served"),
    [
        ({}, False),
        ({"vaultCAVerify": "false"}, True),
        ({"vaultCAFromSecret": "ca"}, True),
        ({"vaultCAFromSecret": "ca", "vaultTLSServerName": "vault.example"}, True),
        ({"vaultCAFromSecret": "ca", "vaultTLSServerName": "other.example"}, False),
        ({"vaultCAFromSecret": "ca", "vaultCAVerify": True}, True),
    ],
)
def test_the_server_s_certificate_is_verified_unless_the_section_says_otherwise(
    certificate: Path, section: dict[str, Any], is_served: bool
) -> None:
    with serving_vault(str(certificate)) as secure:
        members = {"vaultAddress": secure.address, "vaultBackend": "kv-v2"} | section
        secrets = {"vaultToken": secure.root_token, "ca": _authority(certificate)}
        kms = VaultServers().create(KmsRequest(kms_id="v", section=members, secrets=secrets))
        if is_served:
            kms.store(_HANDLE, _PASSPHRASE)
            assert kms.fetch(_HANDLE, "") == _PASSPHRASE
        else:
            with pytest.raises(KmsUnavailable, match="certificate cannot be verified"):
                kms.store(_HANDLE, _PASSPHRASE)
            assert secure.asked == []


def test_a_ca_that_is_missing_or_no_certificate_is_named(kms_of: KmsOf, vault: VaultServer, tmp_path: Path) -> None:
    junk = tmp_path / "ca.pem"
    junk.write_text("hidden-word")
    with pytest.raises(InvalidArgument, match="secrets: expected ca, as vaultCAFromSecret"):
        kms_of(vault, vaultCAFromSecret="ca")
    with pytest.raises(KmsMisconfigured, match="vaultCAFromSecret: expected certificates in PEM"):
        kms_of(vault, {"ca": "hidden-word"}, vaultCAFromSecret="ca")
    for path in (junk, tmp_path / "missing"):
        with pytest.raises(KmsMisconfigured, match="vaultCAFile: expected certificates in PEM"):
            kms_of(vault, vaultCAFile=str(path))


@pytest.mark.parametrize(
    ("section", "why"),
    [
        ({"vaultAddress": ""}, "vaultAddress: required"),
        ({"vaultAddress": "v:8200"}, "vaultAddress: expected https://host:port"),
        ({"vaultAddress": "ftp://v"}, "vaultAddress: expected https://host:port"),
        ({"vaultAddress": "https://v:port"}, "vaultAddress: expected https://host:port"),
        ({"vaultAddress": "https://v?x=1"}, "vaultAddress: expected https://host:port"),
        ({"vaultAddress": "https://user:hidden-word@v"}, "vaultAddress: expected no user or password"),
        ({"vaultAddress": 5}, "vaultAddress: expected text"),
        ({"vaultBackend": "kv-v3"}, "vaultBackend: expected kv or kv-v2"),
        ({"vaultCAVerify": "perhaps"}, "vaultCAVerify: expected true or false"),
        ({"vaultDestroyKeys": ["hidden-word"]}, "vaultDestroyKeys: expected true or false"),
        ({"vaultTokenFile": "token"}, "vaultTokenFile: expected an absolute path"),
        ({"vaultTokenFiel": "hidden-word"}, "vaultTokenFiel: unknown; did you mean vaultTokenFile?"),
        ({"tenants": {}}, "tenants: not served"),
        ({"tenantTokenName": "hidden-word"}, "tenantTokenName: not served: .* use vaultTokenFile"),
        ({"vaultClientCertFromSecret": "hidden-word"}, "vaultClientCertFromSecret: not served"),
    ],
)
def test_what_is_wrong_with_a_section_is_named_and_not_shown(section: dict[str, Any], why: str) -> None:
    request = KmsRequest(kms_id="v", section={"vaultAddress": "https://v"} | section)
    with pytest.raises(KmsMisconfigured, match=f"KMS 'v': {why}") as caught:
        VaultServers().create(request)
    assert "hidden-word" not in str(caught.value)


def test_an_edited_section_is_another_server(kms_of: KmsOf, vault: VaultServer) -> None:
    with serving_vault() as other:
        kms_of(vault, {"vaultToken": vault.root_token}).store(_HANDLE, _PASSPHRASE)
        kms_of(other, {"vaultToken": other.root_token}).store(_HANDLE, Passphrase("other"))
        assert kms_of(vault, {"vaultToken": vault.root_token}).fetch(_HANDLE, "") == _PASSPHRASE
        assert kms_of(other, {"vaultToken": other.root_token}).fetch(_HANDLE, "") == Passphrase("other")


def test_no_secret_is_in_the_log_at_debug_whatever_fails(
    vault: VaultServer, kms_of: KmsOf, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    account = tmp_path / "token"
    account.write_text("hidden-word-jwt")
    vault.service_accounts.add("hidden-word-jwt")
    section = {"vaultServiceAccountTokenFile": str(account)}
    shown: list[str] = []
    with caplog.at_level(logging.DEBUG):
        kms = kms_of(vault, **section)
        kms.store(_HANDLE, Passphrase("hidden-word"))
        kms.fetch(_HANDLE, "")
        for trouble in ({"denied": {f"secret/data/{_HANDLE}"}}, {"is_sealed": True}, {"loses_answers": True}):
            for name, value in trouble.items():
                setattr(vault, name, value)
            for use in (lambda: kms.fetch(_HANDLE, ""), lambda: kms.store(_HANDLE, Passphrase("hidden-word"))):
                try:
                    use()
                except CsiError as error:
                    shown += [str(error), repr(error), repr(error.__cause__)]
        vault.loses_answers = vault.is_sealed = False
        kms.remove("other")
    assert len(shown) >= 15
    texts = [*shown, caplog.text, *(repr(vars(record)) for record in caplog.records)]
    hidden = ["hidden-word", *vault.tokens]
    assert not [text for text in texts for word in hidden if word in text]
