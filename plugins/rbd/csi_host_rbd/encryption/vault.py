"""The KMS type ``vault``: each volume's passphrase is a secret of a Vault or OpenBao server, where ceph-csi has it.

At ``<mount>/[data/]<vaultPassphrasePath>/<handle>`` lies ``{"data": {"passphrase": …}}``; a versioned engine (kv-v2)
puts that into a ``data`` of its own. There a passphrase is written only if there is none (check-and-set), which the
older engine (kv) cannot do: it is asked first, and the volume's lock keeps others away.
"""

from collections.abc import Collection, Mapping
from threading import Lock
from typing import Any

from csi_host.errors import InvalidArgument
from csi_host.kms import (
    KmsMisconfigured,
    KmsRequest,
    Passphrase,
    PassphraseChanged,
    PassphraseExists,
    PassphraseNotFound,
)
from csi_host_rbd.encryption.vault_http import Answer, VaultHttp
from csi_host_rbd.encryption.vault_login import KubernetesLogin, checked_token, read_token
from csi_host_rbd.encryption.vault_settings import VaultSettings

_TOKEN_SECRET = "vaultToken"  # noqa: S105 (the name of the secret's key, not its value)
_BAD_REQUEST = 400
_FORBIDDEN = 403
_NOT_FOUND = 404
_UNVERSIONED, _VERSIONED = 1, 2


class VaultServers:
    """The servers of the sections that are in use, each with its connections and its login."""

    def __init__(self) -> None:
        self._guard = Lock()
        self._servers: dict[str, tuple[VaultSettings, str, _Server]] = {}

    def create(self, request: KmsRequest) -> "VaultKms":
        """Return the KMS for one call; raises KmsMisconfigured, InvalidArgument naming a secret."""
        settings = VaultSettings.parse(request)
        given = ""
        if settings.token_file is None and request.secrets.get(_TOKEN_SECRET):
            given = checked_token(request.kms_id, request.secrets[_TOKEN_SECRET].strip(), f"secrets[{_TOKEN_SECRET}]")
        return VaultKms(self._server(request.kms_id, settings, _ca_certificate(settings, request)), given)

    def _server(self, kms_id: str, settings: VaultSettings, ca_certificate: str) -> "_Server":
        with self._guard:
            known = self._servers.get(kms_id)
            if known is None or known[:2] != (settings, ca_certificate):
                known = (settings, ca_certificate, _Server(kms_id, settings, ca_certificate))
                self._servers[kms_id] = known
            return known[2]


class _Server:
    """One section's server; safe for several threads."""

    def __init__(self, kms_id: str, settings: VaultSettings, ca_certificate: str) -> None:
        self.kms_id = kms_id
        self.settings = settings
        self.http = VaultHttp(kms_id, settings, ca_certificate)
        self.login = KubernetesLogin(kms_id, settings, self.http)
        # What the server has said of its engine; it is the same for all.
        self.kv_version = settings.kv_version


class VaultKms:
    """A key-value engine as one call uses it; ``given_token`` is the call's own, "" for the host's."""

    def __init__(self, server: _Server, given_token: str) -> None:
        self._server = server
        self._settings = server.settings
        self._given_token = given_token

    @property
    def common_passphrase(self) -> None:
        """None: each volume has its own."""
        return

    def check(self) -> None:
        """Have a token, and know the engine's version."""
        self._token()
        self._kv_version()

    def store(self, volume_id: str, passphrase: Passphrase) -> str:
        """Write the passphrase where there is none; raises PassphraseExists."""
        is_versioned = self._kv_version() == _VERSIONED
        if not (self._store_version if is_versioned else self._store_unversioned)(volume_id, passphrase):
            raise PassphraseExists(f"KMS {self._server.kms_id!r}: there is a passphrase of {volume_id} already")
        return ""

    def fetch(self, volume_id: str, beside: str) -> Passphrase:  # noqa: ARG002 (the protocol's; nothing is kept there)
        """Read the passphrase; raises PassphraseNotFound."""
        answer = self._read(volume_id)
        text = answer.within(*["data"] * self._kv_version(), "data", "passphrase") if answer.is_ok else None
        if not isinstance(text, str) or not text:
            what = "what is there has no data.passphrase" if answer.is_ok else "there is none"
            raise PassphraseNotFound(
                f"KMS {self._server.kms_id!r}: reading the passphrase at {self._path(volume_id)}: {what}"
            )
        return Passphrase(text)

    def replace(self, volume_id: str, passphrase: Passphrase, *, known: Passphrase, beside: str) -> str:
        """Write the other passphrase, as a new version where the engine has versions; raises PassphraseChanged."""
        if self.fetch(volume_id, beside) != known:
            raise self._changed(volume_id)
        after = None
        if self._kv_version() == _VERSIONED:
            # Read again with its number: whoever writes in between makes the condition fail.
            found = self._read(volume_id)
            after = found.within("data", "metadata", "version")
            if found.within("data", "data", "data", "passphrase") != known.reveal() or not isinstance(after, int):
                raise self._changed(volume_id)
        if not self._write(volume_id, passphrase, after=after).is_ok:
            raise self._changed(volume_id)
        return ""

    def remove(self, volume_id: str) -> None:
        """Delete the secret, all its versions and for good if the section says so (as it does by default)."""
        path = self._path(volume_id, folder="metadata" if self._settings.destroys else "data")
        self._ask(f"removing the passphrase of {volume_id}", "DELETE", path, fine={_NOT_FOUND})

    def _changed(self, volume_id: str) -> PassphraseChanged:
        return PassphraseChanged(
            f"KMS {self._server.kms_id!r}: volume {volume_id} has another passphrase by now; ask again"
        )

    def _store_unversioned(self, volume_id: str, passphrase: Passphrase) -> bool:
        """Whether there was room for the passphrase, and it was written."""
        if self._read(volume_id).is_ok:
            return False
        self._write(volume_id, passphrase, after=None)
        return True

    def _store_version(self, volume_id: str, passphrase: Passphrase) -> bool:
        """Whether there was room for the passphrase, and it was written."""
        refusal = self._write(volume_id, passphrase, after=0)
        if refusal.is_ok:
            return True
        found = self._read(volume_id)
        if found.is_ok:
            return False
        version = found.within("data", "metadata", "version")
        if not isinstance(version, int):
            # There is nothing that the condition could have failed on.
            raise self._server.http.refused(
                f"storing the passphrase of {volume_id}", refusal, hidden=_hidden(passphrase)
            )
        # Versions that were deleted and not destroyed count on.
        return self._write(volume_id, passphrase, after=version).is_ok

    def _write(self, volume_id: str, passphrase: Passphrase, *, after: int | None) -> Answer:
        """Write the passphrase as the version that follows ``after``, which is 0 for the first; None for no versions.

        A condition that does not hold is an answer, not an error.
        """
        content = {"data": {"passphrase": passphrase.reveal()}}
        return self._ask(
            f"storing the passphrase of {volume_id}",
            "POST",
            self._path(volume_id),
            body=content if after is None else {"options": {"cas": after}, "data": content},
            fine=() if after is None else {_BAD_REQUEST},
            hidden=_hidden(passphrase),
        )

    def _read(self, volume_id: str) -> Answer:
        return self._ask(f"reading the passphrase of {volume_id}", "GET", self._path(volume_id), fine={_NOT_FOUND})

    def _path(self, volume_id: str, *, folder: str = "data") -> str:
        settings = self._settings
        parts = [settings.mount, folder if self._kv_version() == _VERSIONED else "", settings.path, volume_id]
        return "/".join(part for part in parts if part)

    def _kv_version(self) -> int:
        if self._server.kv_version is None:
            self._server.kv_version = self._asked_version()
        return self._server.kv_version

    def _asked_version(self) -> int:
        mount = self._settings.mount
        # What the servers' own command line asks: a token that may use the engine may ask it.
        answer = self._ask(f"asking for the engine at {mount!r}", "GET", f"sys/internal/ui/mounts/{mount}")
        if answer.within("data", "type") not in {"kv", "generic"}:
            raise KmsMisconfigured(f"KMS {self._server.kms_id!r}: vaultBackendPath: {mount!r} is no key-value engine")
        return _VERSIONED if answer.within("data", "options", "version") == "2" else _UNVERSIONED

    def _ask(
        self,
        step: str,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        fine: Collection[int] = (),
        hidden: Collection[str] = (),
    ) -> Answer:
        """Return the answer if it is a good one or ``fine``; ``hidden`` is what no error may repeat."""
        token = self._token()
        http, namespace = self._server.http, self._settings.namespace
        answer = http.ask(step, method, path, namespace=namespace, token=token, body=body)
        if answer.status == _FORBIDDEN and self._has_login:
            # Also what a token gets that has been revoked.
            self._server.login.forget(token)
            token = self._token()
            answer = http.ask(step, method, path, namespace=namespace, token=token, body=body)
        if not answer.is_ok and answer.status not in fine:
            raise http.refused(step, answer, hidden=[token, *hidden])
        return answer

    @property
    def _has_login(self) -> bool:
        return not self._given_token and self._settings.token_file is None

    def _token(self) -> str:
        if self._given_token:
            return self._given_token
        if self._settings.token_file is not None:
            return read_token(self._server.kms_id, self._settings.token_file, "vaultTokenFile")
        return self._server.login.token()


def _hidden(passphrase: Passphrase) -> list[str]:
    """Return what no error may repeat."""
    return [passphrase.reveal()]


def _ca_certificate(settings: VaultSettings, request: KmsRequest) -> str:
    """Return the certificates in the call's secrets, "" when the section wants none of them."""
    if not settings.ca_secret:
        return ""
    found = request.secrets.get(settings.ca_secret, "")
    if not found:
        raise InvalidArgument(f"secrets: expected {settings.ca_secret}, as vaultCAFromSecret of the KMS says")
    return found
