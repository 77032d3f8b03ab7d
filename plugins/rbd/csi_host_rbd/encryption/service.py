"""Encryption as the volumes see it: from a KMS id and a call's secrets to the keys of that call."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from csi_host.errors import CsiError, FailedPrecondition, InvalidArgument
from csi_host.kms import KmsRequest, KmsTypes
from csi_host_rbd.encryption.keys import Keys, KeySource
from csi_host_rbd.encryption.parameters import BLOCK, DEFAULT_KMS_ID, EncryptionParameters
from csi_host_rbd.encryption.sections import KmsNotConfigured, KmsSections
from csi_host_rbd.reservations import Reservation

log = logging.getLogger(__name__)


class KmsNotServed(FailedPrecondition):
    """A volume or snapshot names a KMS that the configuration does not have."""


class EncryptionTypeNotServed(FailedPrecondition):
    """A volume or snapshot is encrypted in a way that is not served for RBD images."""


class Encryption:
    """All key management systems of the configuration."""

    def __init__(self, *, kms_types: KmsTypes, sections: KmsSections) -> None:
        self._kms_types = kms_types
        self._sections = sections

    def keys_of_class(
        self, wanted: EncryptionParameters | None, secrets: Mapping[str, str], *, owner: str
    ) -> Keys | None:
        """Return the keys that a StorageClass asks for, None when it asks for none.

        Raises InvalidArgument naming the parameter, KmsFileInvalid, KmsMisconfigured, KmsTypeUnknown.
        """
        if wanted is None:
            return None
        try:
            return self._keys(wanted.kms_id, secrets, owner)
        except KmsNotConfigured as reason:
            raise InvalidArgument(f"parameters[encryptionKMSID]: {reason}") from reason

    def keys_of(self, reservation: Reservation, handle: str, secrets: Mapping[str, str]) -> Keys | None:
        """Return the keys of an existing volume or snapshot, None when it is not encrypted.

        Raises EncryptionTypeNotServed, KmsNotServed, KmsFileInvalid, KmsMisconfigured, KmsTypeUnknown.
        """
        if not reservation.kms_id:
            return None
        if reservation.encryption_type != BLOCK:
            raise EncryptionTypeNotServed(
                f"{handle} has the encryption type {reservation.encryption_type!r}, and only {BLOCK!r} is served"
            )
        return self._keys_of_existing(reservation, handle, secrets)

    def source_of(
        self, reservation: Reservation, metadata: Mapping[str, str], handle: str, secrets: Mapping[str, str]
    ) -> KeySource | None:
        """Return where a clone of this volume or snapshot gets its passphrase from, None when it is not encrypted.

        ``metadata`` is its image's. Raises as ``keys_of``.
        """
        keys = self.keys_of(reservation, handle, secrets)
        return None if keys is None else KeySource(keys=keys, metadata=metadata, handle=handle)

    def forget(self, reservation: Reservation, handle: str, secrets: Mapping[str, str]) -> None:
        """Destroy the passphrase of a volume or snapshot whose image is gone, whatever its type; see ``forget``."""
        if not reservation.kms_id:
            return
        with _left_behind(handle):
            self._keys_of_existing(reservation, handle, secrets).remove(handle)

    def _keys_of_existing(self, reservation: Reservation, handle: str, secrets: Mapping[str, str]) -> Keys:
        try:
            return self._keys(reservation.kms_id, secrets, reservation.owner)
        except KmsNotConfigured as reason:
            raise KmsNotServed(f"{handle} is encrypted: {reason}") from reason

    def _keys(self, kms_id: str, secrets: Mapping[str, str], owner: str) -> Keys:
        if kms_id == DEFAULT_KMS_ID:
            # As in ceph-csi, whatever the file says.
            type_name, members = DEFAULT_KMS_ID, {}
        else:
            section = self._sections.find(kms_id)
            type_name, members = section.type_name, dict(section.members)
        request = KmsRequest(kms_id=kms_id, section=members, secrets=secrets, tenant=owner)
        return Keys(self._kms_types.find(type_name).create(request))


def forget(keys: Keys, handle: str) -> None:
    """Destroy a passphrase; one that cannot be is named in the log, or the volume could never be deleted.

    Raises what asks for a retry.
    """
    with _left_behind(handle):
        keys.remove(handle)


@contextmanager
def _left_behind(handle: str) -> Iterator[None]:
    try:
        yield
    except CsiError as error:
        if not error.is_final:
            raise
        log.warning(f"the passphrase of {handle} may be left behind: {error}")


def differs(wanted: EncryptionParameters | None, found: Reservation) -> str:
    """Return how an existing volume's encryption is not what is wanted, "" when it is."""
    if wanted is None:
        return f"encrypted with the KMS {found.kms_id!r}" if found.kms_id else ""
    if not found.kms_id:
        return "not encrypted"
    if (wanted.kms_id, wanted.encryption_type) == (found.kms_id, found.encryption_type):
        return ""
    return f"encrypted with the KMS {found.kms_id!r} by type {found.encryption_type!r}"


def check_source(wanted: Keys | None, source: KeySource | None) -> None:
    """Raise InvalidArgument when only one of a volume and what it is made from is to be encrypted.

    The KMS may be another one: the passphrase is passed on.
    """
    if wanted is not None and source is None:
        raise InvalidArgument("parameters[encrypted]: volume_content_source is not encrypted, so its copy cannot be")
    if wanted is None and source is not None:
        raise InvalidArgument(
            f"parameters[encrypted]: expected true, as volume_content_source ({source.handle}) is encrypted"
        )
