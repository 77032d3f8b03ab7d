"""The administrator's sections of key management systems: ceph-csi's ``config.json`` of {KMS id: section}.

The file is read again when it has changed. It may be missing as long as nobody names a KMS but ``default``, and one
section that is wrong does not hurt the others. ceph-csi's other source, a ConfigMap asked of Kubernetes, is not read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csi_host.errors import FailedPrecondition, InvalidArgument
from csi_host_rbd.watched_file import FileUnreadable, WatchedFile

TYPE_MEMBERS = ("encryptionKMSType", "KMS_PROVIDER")


class KmsNotConfigured(InvalidArgument):
    """The configuration has no KMS of this id."""


class KmsFileInvalid(FailedPrecondition):
    """The file of KMS sections cannot be read or used; the message never shows its text."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """One KMS: the name of its type, and all members as the file has them but for the type's."""

    kms_id: str
    type_name: str
    members: Mapping[str, Any]


class KmsSections:
    """The sections in a file, read again whenever the file has changed: an edit needs no restart."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = WatchedFile(path, self._parsed)

    def find(self, kms_id: str) -> Section:
        """Return the section of this id; raises KmsNotConfigured, KmsFileInvalid."""
        sections = self._read()
        if kms_id not in sections:
            raise KmsNotConfigured(f"missing configuration for KMS ID {kms_id!r} in {self._path}")
        members = sections[kms_id]
        if not isinstance(members, dict):
            raise self._wrong(kms_id, "expected an object")
        type_name = next((members[name] for name in TYPE_MEMBERS if name in members), None)
        if not isinstance(type_name, str) or not type_name:
            raise self._wrong(kms_id, f"{TYPE_MEMBERS[0]}: expected the name of a type")
        rest = {name: value for name, value in members.items() if name not in TYPE_MEMBERS}
        return Section(kms_id=kms_id, type_name=type_name, members=rest)

    def _read(self) -> Mapping[str, Any]:
        try:
            return self._file.read()
        except FileNotFoundError:
            raise KmsNotConfigured(f"there is no file of KMS sections {self._path}") from None
        except FileUnreadable as why:
            raise KmsFileInvalid(f"the file of KMS sections {self._path} {why}") from None

    def _parsed(self, loaded: Any) -> Mapping[str, Any]:
        if not isinstance(loaded, dict):
            raise KmsFileInvalid(f"the file of KMS sections {self._path}: expected an object of sections by KMS ID")
        return loaded

    def _wrong(self, kms_id: str, why: str) -> KmsFileInvalid:
        return KmsFileInvalid(f"the file of KMS sections {self._path}: KMS ID {kms_id!r}: {why}")
