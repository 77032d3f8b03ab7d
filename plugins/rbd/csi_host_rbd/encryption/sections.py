"""The administrator's sections of key management systems: ceph-csi's ``config.json`` of {KMS id: section}.

The file is read again when it has changed. It may be missing as long as nobody names a KMS but ``default``, and one
section that is wrong does not hurt the others. ceph-csi's other source, a ConfigMap asked of Kubernetes, is not read.
"""

import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csi_host.errors import FailedPrecondition, InvalidArgument

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


@dataclass(frozen=True, kw_only=True)
class _Stamp:
    mtime_ns: int
    size: int
    inode: int


class KmsSections:
    """The sections in a file, read again whenever the file has changed: an edit needs no restart."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._guard = threading.Lock()
        self._stamp: _Stamp | None = None
        self._sections: Mapping[str, Any] = {}

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
        with self._guard:
            try:
                # The stamp is that of the opened file: a Kubernetes ConfigMap is replaced by renaming.
                with self._path.open(encoding="utf-8") as file:
                    status = os.fstat(file.fileno())
                    stamp = _Stamp(mtime_ns=status.st_mtime_ns, size=status.st_size, inode=status.st_ino)
                    if stamp != self._stamp:
                        self._sections = _parsed(self._path, file.read())
                        self._stamp = stamp
            except FileNotFoundError:
                raise KmsNotConfigured(f"there is no file of KMS sections {self._path}") from None
            except (OSError, UnicodeDecodeError) as error:
                why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
                raise KmsFileInvalid(f"the file of KMS sections {self._path} cannot be read: {why}") from None
            return self._sections

    def _wrong(self, kms_id: str, why: str) -> KmsFileInvalid:
        return KmsFileInvalid(f"the file of KMS sections {self._path}: KMS ID {kms_id!r}: {why}")


def _parsed(path: Path, text: str) -> Mapping[str, Any]:
    try:
        loaded = json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else "its text"
        raise KmsFileInvalid(f"the file of KMS sections {path} is not JSON ({where})") from None
    if not isinstance(loaded, dict):
        raise KmsFileInvalid(f"the file of KMS sections {path}: expected an object of sections by KMS ID")
    return loaded
