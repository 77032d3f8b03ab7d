"""The KMS types that live on the class's secret alone: ``default`` and ``metadata``, in ceph-csi's formats.

``default``: the secret's ``encryptionPassphrase`` is the passphrase of every volume. ``metadata``: each volume has a
passphrase of its own, wrapped by a key that is derived from the secret's and from the handle, and kept in the image's
metadata as ``{"dek": <base64>, "nonce": <base64>}``: AES-256-GCM with a nonce of 12 bytes and nothing beside, the key
being scrypt of the secret with the handle's text as the salt.
"""

import base64
import binascii
import hashlib
import json
import secrets as randomness
from threading import BoundedSemaphore
from typing import Any

from csi_host.errors import InvalidArgument
from csi_host.kms import KmsRequest, Passphrase, PassphraseCannotChange, PassphraseChanged, PassphraseUnreadable
from csi_host_rbd.encryption.members import Members

_SECRET = "encryptionPassphrase"  # noqa: S105 (the name of the secret's key, not its value)
_KEY_BYTES = 32
_NONCE_BYTES = 12
_COST, _BLOCK, _PARALLEL = 32768, 8, 1
# What scrypt needs (128 * N * r bytes), and some more: OpenSSL's own limit is exactly too small.
_MEMORY_BYTES = 64 * 1024**2
# One derivation takes 32 MiB for less than 0.1 s, so that forty at once would be 1.3 GiB.
_DERIVATIONS_AT_ONCE = 2
_UNSERVED = {
    "secretName": "Secrets are not asked of Kubernetes; put encryptionPassphrase into the StorageClass's secret",
    "secretNamespace": "Secrets are not asked of Kubernetes; put encryptionPassphrase into the StorageClass's secret",
}


class SecretKms:
    """``default``: one passphrase for all volumes, out of the call's secrets."""

    def __init__(self, request: KmsRequest) -> None:
        Members(request).check_names((), {})
        self._passphrase = _passphrase_of(request)

    @property
    def common_passphrase(self) -> Passphrase:
        """The secret's passphrase; raises InvalidArgument when there is none."""
        return _required(self._passphrase)

    def check(self) -> None:
        """Raise InvalidArgument when the secrets have no passphrase."""
        _required(self._passphrase)

    def store(self, volume_id: str, passphrase: Passphrase) -> str:  # noqa: ARG002 (the protocol's)
        """Keep nothing: only the common passphrase can be fetched again."""
        if passphrase != self.common_passphrase:
            raise ValueError("a KMS with one passphrase for all volumes cannot keep another")
        return ""

    def fetch(self, volume_id: str, beside: str) -> Passphrase:  # noqa: ARG002 (the protocol's)
        """Return the common passphrase."""
        return self.common_passphrase

    def replace(
        self,
        volume_id: str,
        passphrase: Passphrase,  # noqa: ARG002 (the protocol's)
        *,
        known: Passphrase,  # noqa: ARG002 (the protocol's)
        beside: str,  # noqa: ARG002 (the protocol's)
    ) -> str:
        """Refuse: the passphrase is not this volume's own."""
        raise PassphraseCannotChange(f"volume {volume_id} has the passphrase that all volumes of its class have")

    def remove(self, volume_id: str) -> None:
        """Do nothing: the passphrase is not this volume's own."""


class Derivation:
    """Derives wrapping keys, a few at a time."""

    def __init__(self) -> None:
        self._turns = BoundedSemaphore(_DERIVATIONS_AT_ONCE)

    def key(self, passphrase: Passphrase, volume_id: str) -> bytes:
        """Return the key that wraps this volume's passphrase; 32 bytes."""
        with self._turns:
            return hashlib.scrypt(
                passphrase.reveal().encode(),
                salt=volume_id.encode(),
                n=_COST,
                r=_BLOCK,
                p=_PARALLEL,
                maxmem=_MEMORY_BYTES,
                dklen=_KEY_BYTES,
            )


class MetadataKms:
    """``metadata``: wraps each volume's passphrase by the call's secret, and leaves it to the driver to keep."""

    def __init__(self, request: KmsRequest, derivation: Derivation) -> None:
        Members(request).check_names((), _UNSERVED)
        self._passphrase = _passphrase_of(request)
        self._derivation = derivation

    @property
    def common_passphrase(self) -> None:
        """None: each volume has its own."""
        return

    def check(self) -> None:
        """Raise InvalidArgument when the secrets have no passphrase to wrap with."""
        _required(self._passphrase)

    def store(self, volume_id: str, passphrase: Passphrase) -> str:
        """Return the passphrase wrapped."""
        nonce = randomness.token_bytes(_NONCE_BYTES)
        sealed = self._cipher(volume_id).encrypt(nonce, passphrase.reveal().encode(), None)
        wrapped = {"dek": base64.b64encode(sealed).decode(), "nonce": base64.b64encode(nonce).decode()}
        return json.dumps(wrapped, separators=(",", ":"))

    def fetch(self, volume_id: str, beside: str) -> Passphrase:
        """Return the passphrase unwrapped; raises PassphraseUnreadable."""
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415 (loaded only where there are such volumes)

        sealed, nonce = _parts(volume_id, beside)
        try:
            plain = self._cipher(volume_id).decrypt(nonce, sealed, None)
            return Passphrase(plain.decode())
        except (InvalidTag, ValueError):
            raise PassphraseUnreadable(
                f"the wrapped passphrase of volume {volume_id} cannot be unwrapped: secrets[{_SECRET}] is not what it "
                "was wrapped with, or it was wrapped for another volume"
            ) from None

    def replace(self, volume_id: str, passphrase: Passphrase, *, known: Passphrase, beside: str) -> str:
        """Return the other passphrase wrapped; the driver keeps it in the place of the first."""
        if self.fetch(volume_id, beside) != known:
            raise PassphraseChanged(f"volume {volume_id} has another passphrase by now; ask again")
        return self.store(volume_id, passphrase)

    def remove(self, volume_id: str) -> None:
        """Do nothing: what is wrapped goes with the image."""

    def _cipher(self, volume_id: str) -> Any:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415 (as above)

        return AESGCM(self._derivation.key(_required(self._passphrase), volume_id))


def _passphrase_of(request: KmsRequest) -> Passphrase | None:
    # Not required yet: DeleteVolume needs none, and its secret may be another one.
    text = request.secrets.get(_SECRET)
    return Passphrase(text) if text else None


def _required(passphrase: Passphrase | None) -> Passphrase:
    if passphrase is None:
        raise InvalidArgument(f"secrets: expected {_SECRET}, it is missing or empty")
    return passphrase


def _parts(volume_id: str, beside: str) -> tuple[bytes, bytes]:
    """Return the sealed passphrase and the nonce."""
    try:
        members = json.loads(beside)
        sealed, nonce = (base64.b64decode(members[name], validate=True) for name in ("dek", "nonce"))
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error):
        sealed = nonce = b""
    if not sealed or len(nonce) != _NONCE_BYTES:
        raise PassphraseUnreadable(
            f'the wrapped passphrase of volume {volume_id}: expected {{"dek", "nonce"}} in base64, a nonce of '
            f"{_NONCE_BYTES} bytes, in the image's metadata; it is missing or damaged"
        )
    return sealed, nonce
