"""What a StorageClass says about encryption."""

from collections.abc import Mapping
from dataclasses import dataclass

from csi_host.errors import InvalidArgument

# The KMS that needs no section in the configuration: its passphrase is in the class's secret.
DEFAULT_KMS_ID = "default"
BLOCK = "block"
FILE = "file"


@dataclass(frozen=True, kw_only=True)
class EncryptionParameters:
    """An encrypted volume: ``kms_id`` names the KMS, ``encryption_type`` what is encrypted (the block device)."""

    kms_id: str = DEFAULT_KMS_ID
    encryption_type: str = BLOCK


def parse_encryption(parameters: Mapping[str, str]) -> EncryptionParameters:
    """Return what the parameters of an encrypted volume say; raises InvalidArgument naming the parameter."""
    encryption_type = parameters.get("encryptionType", BLOCK)
    if encryption_type == FILE:
        raise InvalidArgument(
            f"parameters[encryptionType]: {FILE!r} (fscrypt) is not served for RBD images; expected {BLOCK!r}"
        )
    if encryption_type != BLOCK:
        raise InvalidArgument(f"parameters[encryptionType]: expected {BLOCK!r}, got {encryption_type!r}")
    return EncryptionParameters(kms_id=parameters.get("encryptionKMSID") or DEFAULT_KMS_ID)
