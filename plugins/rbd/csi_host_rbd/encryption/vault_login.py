"""Tokens of a Vault or OpenBao server: given in a file or in the call's secrets, or had for a service account."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from csi_host.kms import KmsMisconfigured, KmsUnavailable
from csi_host_rbd.encryption.vault_http import VaultHttp
from csi_host_rbd.encryption.vault_settings import VaultSettings

_TOKEN_BYTES = 64 * 1024
# A token is asked for anew before it ends: a request that is under way must not meet the end.
_USED_SHARE = 0.75
# What a token that has no end is kept for.
_NO_LEASE_SECONDS = 600.0


@dataclass(frozen=True, kw_only=True)
class _Token:
    text: str = field(repr=False)
    use_until: float


class KubernetesLogin:
    """The token that the pod's service account gets; one for all calls, had anew before it ends or when refused."""

    def __init__(self, kms_id: str, settings: VaultSettings, http: VaultHttp) -> None:
        self._kms_id = kms_id
        self._settings = settings
        self._http = http
        self._guard = Lock()
        self._token: _Token | None = None

    def token(self) -> str:
        """Return a token; raises KmsUnavailable, KmsForbidden, KmsMisconfigured."""
        with self._guard:
            if self._token is None or time.monotonic() >= self._token.use_until:
                self._token = self._log_in()
            return self._token.text

    def forget(self, refused: str) -> None:
        """Have the next call log in, unless another one did so since the token was refused."""
        with self._guard:
            if self._token is not None and self._token.text == refused:
                self._token = None

    def _log_in(self) -> _Token:
        settings = self._settings
        step = f"logging in as role {settings.role!r} at auth/{settings.login_mount}"
        account = read_token(self._kms_id, settings.service_account_token, "vaultServiceAccountTokenFile")
        answer = self._http.ask(
            step,
            "POST",
            f"auth/{settings.login_mount}/login",
            namespace=settings.login_namespace,
            body={"role": settings.role, "jwt": account},
        )
        text, lease = answer.within("auth", "client_token"), answer.within("auth", "lease_duration")
        if not answer.is_ok or not isinstance(text, str) or not text:
            raise self._http.refused(step, answer, hidden=[account])
        seconds = float(lease) if isinstance(lease, int) and lease > 0 else _NO_LEASE_SECONDS
        return _Token(text=text, use_until=time.monotonic() + seconds * _USED_SHARE)


def read_token(kms_id: str, path: Path, member: str) -> str:
    """Return the token in a file, which may be replaced at any time; ``member`` names it in the error."""
    try:
        with path.open(encoding="ascii") as file:
            text = file.read(_TOKEN_BYTES).strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not ASCII text"
        raise KmsUnavailable(f"KMS {kms_id!r}: {member}: the token in {path} cannot be read: {why}") from None
    return checked_token(kms_id, text, member)


def checked_token(kms_id: str, text: str, member: str) -> str:
    """Return a token that a header can carry; raises KmsMisconfigured."""
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise KmsMisconfigured(f"KMS {kms_id!r}: {member}: expected a token, one line of text")
    return text
