"""Key management systems (KMS): where the passphrases of encrypted volumes are kept, the same for every driver.

A plugin brings kinds of KMS by the hook ``csi_host_kms_providers``; a driver that encrypts finds them in its
``HostContext``, makes one for each call out of the administrator's section and the call's secrets, and asks it for
passphrases. What a KMS cannot keep itself it hands back wrapped, and the driver keeps that beside the volume.
"""

import base64
import hmac
import secrets as randomness
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

from csi_host.errors import Aborted, FailedPrecondition, PermissionDenied, Unavailable

_RANDOM_BYTES = 20


class KmsUnavailable(Unavailable):
    """The KMS cannot be reached or cannot answer now; what was sent may have been done, ask again."""


class KmsForbidden(PermissionDenied):
    """The KMS knows who asks and refuses."""


class KmsMisconfigured(FailedPrecondition):
    """The section of a KMS is wrong; the message names the member and what was expected."""


class KmsTypeUnknown(FailedPrecondition):
    """No installed plugin brings this kind of KMS."""


class KmsTypeConflict(FailedPrecondition):
    """Two installed distributions bring a kind of KMS of one name."""


class PassphraseExists(Aborted):
    """The KMS has a passphrase of this volume already, perhaps since a moment ago: it is never replaced."""


class PassphraseNotFound(FailedPrecondition):
    """The KMS has no passphrase of this volume."""


class PassphraseCannotChange(FailedPrecondition):
    """The KMS has one passphrase for all volumes, so that none of them can get another."""


class PassphraseChanged(Aborted):
    """The KMS has another passphrase by now than the one that was to be replaced."""


class PassphraseUnreadable(FailedPrecondition):
    """What is kept beside the volume cannot be unwrapped: it is damaged, or was wrapped for another volume or key."""


class Passphrase:
    """A secret text that shows itself only to ``reveal``."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        if not text:
            raise ValueError("a passphrase has at least one character")
        self._text = text

    def reveal(self) -> str:
        """Return the text; it belongs into no log, error or file."""
        return self._text

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Passphrase):
            return NotImplemented
        return hmac.compare_digest(self._text.encode(), other._text.encode())

    __hash__ = None  # type: ignore[assignment]  # a dictionary's keys end in messages

    def __repr__(self) -> str:
        return "Passphrase(withheld)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a passphrase is not to be written anywhere")


def new_passphrase() -> Passphrase:
    """Return a random passphrase: 20 random bytes as URL-safe base64, 28 characters, as ceph-csi has them."""
    return Passphrase(base64.urlsafe_b64encode(randomness.token_bytes(_RANDOM_BYTES)).decode())


class Kms(Protocol):
    """One KMS as one call uses it; ``volume_id`` is the handle that the CO has."""

    @property
    def common_passphrase(self) -> Passphrase | None:
        """The one passphrase of all volumes, None when each volume has its own."""
        ...

    def check(self) -> None:
        """Raise what every use would end with, as far as that can be known before there is a volume."""
        ...

    def store(self, volume_id: str, passphrase: Passphrase) -> str:
        """Keep the passphrase of a volume that has none; returns what must be kept beside the volume, "" for nothing.

        Raises PassphraseExists; never replaces a passphrase.
        """
        ...

    def fetch(self, volume_id: str, beside: str) -> Passphrase:
        """Return the passphrase, ``beside`` being what ``store`` returned.

        Raises PassphraseNotFound, PassphraseUnreadable.
        """
        ...

    def replace(self, volume_id: str, passphrase: Passphrase, *, known: Passphrase, beside: str) -> str:
        """Keep another passphrase in place of ``known``; returns what must be kept beside the volume from now on.

        ``beside`` is what is kept there now. Raises PassphraseCannotChange, PassphraseNotFound, and PassphraseChanged
        when it is not ``known`` that is kept. Only for a volume that both passphrases open.
        """
        ...

    def remove(self, volume_id: str) -> None:
        """Destroy the passphrase as far as the KMS keeps it; fine when there is none."""
        ...


@dataclass(frozen=True, kw_only=True)
class KmsRequest:
    """What a KMS is made with: the administrator's section of this id and the secrets of one call.

    ``tenant`` is the Kubernetes namespace of the claim, "" when it is not known.
    """

    kms_id: str
    section: Mapping[str, Any] = field(default_factory=dict, repr=False)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    tenant: str = ""


@dataclass(frozen=True, kw_only=True)
class KmsType:
    """A kind of KMS: cheap to make, imports nothing of its service; ``create`` does, and asks nobody yet.

    ``create`` raises KmsMisconfigured. It may be called by several threads at once.
    """

    name: str
    summary: str
    create: Callable[[KmsRequest], Kms]


class KmsTypes:
    """The kinds of KMS that can be used, by name; ``brought`` has each with the distribution that brings it."""

    def __init__(self, brought: Iterable[tuple[KmsType, str]] = ()) -> None:
        self._claims: dict[str, list[tuple[KmsType, str]]] = {}
        for kms_type, distribution in brought:
            self._claims.setdefault(kms_type.name, []).append((kms_type, distribution))

    @property
    def names(self) -> list[str]:
        """The names, sorted."""
        return sorted(self._claims)

    @property
    def conflicts(self) -> list[KmsTypeConflict]:
        """The names that more than one distribution brings; no such kind is used."""
        return [_conflict(name, claims) for name, claims in sorted(self._claims.items()) if len(claims) > 1]

    def find(self, name: str) -> KmsType:
        """Return the kind of this name; raises KmsTypeUnknown, KmsTypeConflict."""
        claims = self._claims.get(name, [])
        if not claims:
            raise KmsTypeUnknown(
                f"no installed plugin brings a KMS of type {name!r}; there are: {', '.join(self.names) or 'none'}"
            )
        if len(claims) > 1:
            raise _conflict(name, claims)
        return claims[0][0]


def _conflict(name: str, claims: Iterable[tuple[KmsType, str]]) -> KmsTypeConflict:
    distributions = " and ".join(distribution for _, distribution in claims)
    return KmsTypeConflict(f"KMS type {name!r} is brought by {distributions}: uninstall all but one")
