"""The kinds of KMS that come with the rbd driver; their services' libraries are imported when one is made."""

from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING

from csi_host.kms import Kms, KmsRequest, KmsType
from csi_host_rbd.encryption.parameters import DEFAULT_KMS_ID
from csi_host_rbd.encryption.secret_kms import Derivation, MetadataKms, SecretKms

if TYPE_CHECKING:
    from csi_host_rbd.encryption.vault import VaultServers


def built_in_kms_types() -> Sequence[KmsType]:
    """Return the kinds; connections and logins belong to them, so that a host asks once."""
    derivation, vault = Derivation(), _Vault()
    return [
        KmsType(name=DEFAULT_KMS_ID, summary="one passphrase for all volumes, in the class's secret", create=SecretKms),
        KmsType(
            name="metadata",
            summary="a passphrase for each volume, in the image's metadata, wrapped by the class's secret",
            create=lambda request: MetadataKms(request, derivation),
        ),
        KmsType(
            name="vault",
            summary="a passphrase for each volume, in a key-value engine of HashiCorp Vault or OpenBao",
            create=vault.create,
        ),
    ]


class _Vault:
    """The servers in use; what speaks HTTP is imported when the first one is asked for."""

    def __init__(self) -> None:
        self._guard = Lock()
        self._servers: VaultServers | None = None

    def create(self, request: KmsRequest) -> Kms:
        """Return the KMS for one call."""
        with self._guard:
            if self._servers is None:
                from csi_host_rbd.encryption.vault import VaultServers  # noqa: PLC0415 (imports the HTTP client)

                self._servers = VaultServers()
        return self._servers.create(request)
