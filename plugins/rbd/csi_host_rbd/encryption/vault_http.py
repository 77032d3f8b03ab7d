"""Asking a Vault or OpenBao server over HTTP: requests with a bound, answers understood, no secret in an error."""

import json
import logging
import ssl
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import urllib3

from csi_host.kms import KmsForbidden, KmsMisconfigured, KmsUnavailable
from csi_host.request import seconds_for
from csi_host_rbd.encryption.vault_settings import VaultSettings

log = logging.getLogger(__name__)

_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 10.0
_ANSWER_BYTES = 1 << 20
_REDIRECTIONS = frozenset({307, 308})
_TOO_MANY_REQUESTS = 429
_FORBIDDEN = 403
_SERVER_FAULT = 500
# A standby that cannot forward answers with these (472, 473 of replication), a sealed server with 503.
_STANDBY = frozenset({472, 473})
_SHOWN_CHARACTERS = 200


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the server said; ``document`` is {} where there was no JSON object."""

    status: int
    document: Mapping[str, Any] = field(repr=False)

    @property
    def is_ok(self) -> bool:
        """Whether it was done."""
        return self.status in {200, 204}

    def within(self, *names: str) -> Any:
        """Return the value below these members, None where there is none."""
        value: Any = self.document
        for name in names:
            value = value.get(name) if isinstance(value, dict) else None
        return value

    def says(self, hidden: Collection[str]) -> str:
        """Return the server's own reason, "" when it has none or repeats one of the ``hidden`` texts."""
        errors = self.document.get("errors")
        text = " ".join(" ".join(str(each) for each in errors).split()) if isinstance(errors, list) else ""
        if not text.isprintable() or any(secret and secret in text for secret in hidden):
            return ""
        return text[:_SHOWN_CHARACTERS]


class VaultHttp:
    """A pool of connections to one server; safe for several threads."""

    def __init__(self, kms_id: str, settings: VaultSettings, ca_certificate: str) -> None:
        self._kms_id = kms_id
        self._address = settings.address
        name = settings.server_name
        # Without TLS, urllib3 2.3 and older refuse a name to compare the certificate's with.
        has_name = bool(name) and urlsplit(settings.address).scheme == "https"
        names: dict[str, Any] = {"server_hostname": name, "assert_hostname": name} if has_name else {}
        self._pool = urllib3.PoolManager(ssl_context=_tls(kms_id, settings, ca_certificate), **names)

    def ask(
        self,
        step: str,
        method: str,
        path: str,
        *,
        namespace: str,
        token: str = "",
        body: Mapping[str, Any] | None = None,
    ) -> Answer:
        """Send one request below ``/v1``; every answer is returned but those that mean "not now".

        Raises KmsUnavailable: what was sent may have been done.
        """
        url = f"{self._address}/v1/{quote(path)}"
        headers = {"X-Vault-Request": "true", "Content-Type": "application/json"}
        if namespace:
            headers["X-Vault-Namespace"] = namespace
        if token:
            headers["X-Vault-Token"] = token
        content = None if body is None else json.dumps(body).encode()
        answer, elsewhere = self._send(step, method, url, headers, content)
        if elsewhere:
            # A standby names the active server; a second hop would be a circle.
            answer, _ = self._send(step, method, self._checked(step, elsewhere), headers, content)
        if answer.status in {_TOO_MANY_REQUESTS, *_STANDBY, *_REDIRECTIONS} or answer.status >= _SERVER_FAULT:
            raise self.unavailable(step, f"the server answered with status {answer.status}")
        return answer

    def refused(self, step: str, answer: Answer, *, hidden: Collection[str] = ()) -> KmsForbidden | KmsMisconfigured:
        """Return the error of an answer that says no for good."""
        said = answer.says(hidden)
        text = f"KMS {self._kms_id!r}: {step}: the server refused with status {answer.status}" + (said and f": {said}")
        return KmsForbidden(text) if answer.status == _FORBIDDEN else KmsMisconfigured(text)

    def unavailable(self, step: str, why: str) -> KmsUnavailable:
        """Return the error of a server that cannot answer now."""
        return KmsUnavailable(f"KMS {self._kms_id!r}: {step}: {why}")

    def _send(
        self, step: str, method: str, url: str, headers: Mapping[str, str], content: bytes | None
    ) -> tuple[Answer, str]:
        """Return the answer, and where else to ask when it says so."""
        budget = seconds_for(f"KMS {self._kms_id!r}: {step}", at_most=_ANSWER_SECONDS)
        try:
            response = self._pool.request(
                method, url, body=content, headers=headers, redirect=False, retries=False, preload_content=False,
                timeout=urllib3.Timeout(connect=min(budget, _CONNECT_SECONDS), read=budget),
            )  # fmt: skip
            try:
                received = response.read(_ANSWER_BYTES)
            finally:
                response.release_conn()
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            # Neither chained nor shown: its text is the client library's, and may hold what was sent.
            raise self.unavailable(step, _reason(error)) from None
        elsewhere = response.headers.get("Location", "") if response.status in _REDIRECTIONS else ""
        return Answer(status=response.status, document=_document(received)), urljoin(
            url, elsewhere
        ) if elsewhere else ""

    def _checked(self, step: str, url: str) -> str:
        if urlsplit(url).scheme != urlsplit(self._address).scheme:
            raise self.unavailable(step, "the server sends elsewhere, by another protocol")
        return url


def _tls(kms_id: str, settings: VaultSettings, ca_certificate: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(
            cafile=str(settings.ca_file) if settings.ca_file else None, cadata=ca_certificate or None
        )
    except (OSError, ValueError):
        # ssl.SSLError is an OSError; its text may be a part of the file.
        name = "vaultCAFromSecret" if ca_certificate else "vaultCAFile"
        raise KmsMisconfigured(f"KMS {kms_id!r}: {name}: expected certificates in PEM") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not settings.verifies:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        log.warning(f"KMS {kms_id!r}: vaultCAVerify is false: anybody in between can read the passphrases")
        # Said once here, and in the log's own form; the library would write to the standard error.
        warnings.filterwarnings("ignore", category=urllib3.exceptions.InsecureRequestWarning)
    return context


def _reason(error: Exception) -> str:
    if isinstance(error, urllib3.exceptions.TimeoutError):
        return "the server did not answer in time"
    if isinstance(error, urllib3.exceptions.SSLError):
        return "the server's certificate cannot be verified, or it does not speak TLS"
    return "the server cannot be reached, or it broke off"


def _document(received: bytes) -> Mapping[str, Any]:
    try:
        loaded = json.loads(received)
    except (ValueError, RecursionError):
        return {}
    return loaded if isinstance(loaded, dict) else {}
