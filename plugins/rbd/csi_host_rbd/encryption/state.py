"""What an image's metadata says about its encryption: the state, and the wrapped passphrase ("data encryption key").

Names and values are ceph-csi's. Its first releases wrote both under names with a leading dot, and another word for a
passphrase without a format; all of them are read, and reading writes nothing (ceph-csi renames the keys as it reads).
"""

from collections.abc import Mapping
from enum import StrEnum

from csi_host.errors import FailedPrecondition

STATE = "rbd.csi.ceph.com/encrypted"
WRAPPED = "rbd.csi.ceph.com/dek"
FORMER_STATE = "." + STATE
FORMER_WRAPPED = "." + WRAPPED


class EncryptionStateUnknown(FailedPrecondition):
    """The image's metadata has a state that neither driver writes."""


class EncryptionState(StrEnum):
    """How far an image's encryption is: whether the node still has to write the LUKS header."""

    PREPARED = "encryptionPrepared"
    ENCRYPTED = "encrypted"


_STATES = {
    "encryptionPrepared": EncryptionState.PREPARED,
    "requiresEncryption": EncryptionState.PREPARED,
    "encrypted": EncryptionState.ENCRYPTED,
}


def read_state(metadata: Mapping[str, str]) -> EncryptionState | None:
    """Return the state, None when the image has none; raises EncryptionStateUnknown."""
    text = _either(metadata, STATE, FORMER_STATE).strip()
    if not text:
        return None
    if text not in _STATES:
        expected = ", ".join(_STATES)
        raise EncryptionStateUnknown(f"image metadata {STATE}: expected one of {expected}, got {text[:40]!r}")
    return _STATES[text]


def read_wrapped(metadata: Mapping[str, str]) -> str:
    """Return the wrapped passphrase, "" when the image has none."""
    return _either(metadata, WRAPPED, FORMER_WRAPPED)


def _either(metadata: Mapping[str, str], name: str, former_name: str) -> str:
    return metadata.get(name) or metadata.get(former_name, "")
