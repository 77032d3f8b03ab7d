"""A section of type ``vault``, understood: ceph-csi's members, and three of our own that name files.

| member | default | meaning |
|---|---|---|
| vaultAddress | required | ``https://host:port`` |
| vaultBackend | asked of the server | ``kv`` or ``kv-v2`` |
| vaultBackendPath | ``secret`` | where the key-value engine is mounted |
| vaultPassphraseRoot | - | the same in its older form, ``/v1/secret``; goes before vaultBackendPath |
| vaultPassphrasePath | "" | what comes before the handle in a secret's path |
| vaultDestroyKeys | true | whether removing takes all versions of a secret, for good |
| vaultNamespace | "" | the namespace of the secrets |
| vaultAuthNamespace | vaultNamespace | the namespace of the login |
| vaultAuthPath | ``/v1/auth/kubernetes/login`` | where Kubernetes service accounts log in |
| vaultRole | ``csi-kubernetes`` | the role they ask for |
| vaultCAVerify | true | whether the server's certificate is verified |
| vaultCAFromSecret | - | the key of the call's secrets that has the CA's certificate |
| vaultCAFile | the system's | ours: a file with the CA's certificate |
| vaultTLSServerName | the address's | the name that the certificate must have |
| vaultTokenFile | - | ours: a file with a token, in place of the Kubernetes login |
| vaultServiceAccountTokenFile | the pod's | ours: where the service account's token is |

A token in the call's secrets under ``vaultToken`` goes before the Kubernetes login and after vaultTokenFile.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from csi_host.kms import KmsRequest
from csi_host_rbd.encryption.members import Members

SERVICE_ACCOUNT_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
_SERVED = (
    "vaultAddress", "vaultBackend", "vaultBackendPath", "vaultPassphraseRoot", "vaultPassphrasePath",
    "vaultDestroyKeys", "vaultNamespace", "vaultAuthNamespace", "vaultAuthPath", "vaultRole", "vaultCAVerify",
    "vaultCAFromSecret", "vaultCAFile", "vaultTLSServerName", "vaultTokenFile", "vaultServiceAccountTokenFile",
)  # fmt: skip
_NO_TENANTS = "there are no settings by tenant; give each a KMS ID of its own"
_NO_CLIENT_CERTIFICATES = "client certificates are not presented"
_UNSERVED: Mapping[str, str] = {
    "tenants": _NO_TENANTS,
    "tenantConfigName": _NO_TENANTS,
    "tenantTokenName": "tokens are not asked of Kubernetes; use vaultTokenFile, or vaultToken in the class's secret",
    "tenantSAName": _NO_TENANTS,
    "vaultClientCertFromSecret": _NO_CLIENT_CERTIFICATES,
    "vaultClientCertKeyFromSecret": _NO_CLIENT_CERTIFICATES,
}
_BACKENDS = {"": None, "kv": 1, "kv-v2": 2}
_LOGIN_PATH = re.compile(r"(?:/?v1)?/?auth/(?P<mount>.+?)/login/?")


@dataclass(frozen=True, kw_only=True)
class VaultSettings:
    """How to reach one key-value engine of a Vault or OpenBao server; paths have no slash at either end.

    ``kv_version`` is None when the server is to be asked, ``token_file`` None for a Kubernetes login.
    """

    address: str
    kv_version: int | None
    mount: str
    path: str
    destroys: bool
    namespace: str
    login_namespace: str
    login_mount: str
    role: str
    verifies: bool
    ca_secret: str
    ca_file: Path | None
    server_name: str
    token_file: Path | None
    service_account_token: Path

    @classmethod
    def parse(cls, request: KmsRequest) -> "VaultSettings":
        """Read a section; raises KmsMisconfigured naming the member."""
        members = Members(request)
        members.check_names(_SERVED, _UNSERVED)
        namespace = members.text("vaultNamespace").strip("/")
        return cls(
            address=_address(members),
            kv_version=_kv_version(members),
            mount=_mount(members),
            path=members.text("vaultPassphrasePath").strip("/"),
            destroys=members.truth("vaultDestroyKeys", default=True),
            namespace=namespace,
            login_namespace=members.text("vaultAuthNamespace").strip("/") or namespace,
            login_mount=_login_mount(members),
            role=members.text("vaultRole", "csi-kubernetes"),
            verifies=members.truth("vaultCAVerify", default=True),
            ca_secret=members.text("vaultCAFromSecret"),
            ca_file=_file(members, "vaultCAFile"),
            server_name=members.text("vaultTLSServerName"),
            token_file=_file(members, "vaultTokenFile"),
            service_account_token=_file(members, "vaultServiceAccountTokenFile") or SERVICE_ACCOUNT_TOKEN,
        )


def _address(members: Members) -> str:
    text = members.required_text("vaultAddress")
    try:
        parts = urlsplit(text)
        is_address = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address or parts.query or parts.fragment:
        raise members.wrong("vaultAddress", "expected https://host:port")
    if "@" in parts.netloc:
        raise members.wrong("vaultAddress", "expected no user or password in it")
    return text.rstrip("/")


def _kv_version(members: Members) -> int | None:
    text = members.text("vaultBackend")
    if text not in _BACKENDS:
        raise members.wrong("vaultBackend", "expected kv or kv-v2")
    return _BACKENDS[text]


def _mount(members: Members) -> str:
    # The older name goes first, as in ceph-csi.
    root = members.text("vaultPassphraseRoot").removeprefix("/v1/")
    return (root or members.text("vaultBackendPath")).strip("/") or "secret"


def _login_mount(members: Members) -> str:
    text = members.text("vaultAuthPath", "/v1/auth/kubernetes/login")
    found = _LOGIN_PATH.fullmatch(text)
    return found["mount"] if found else text.strip("/")


def _file(members: Members, name: str) -> Path | None:
    text = members.text(name)
    if text and not text.startswith("/"):
        raise members.wrong(name, "expected an absolute path")
    return Path(text) if text else None
