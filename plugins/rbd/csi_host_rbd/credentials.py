"""The Ceph user of an RPC, out of its secrets."""

import base64
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from csi_host.errors import InvalidArgument

_MIGRATION_USER = "admin"
# Type, time of making (seconds, nanoseconds), length of what follows.
_KEY_HEADER = struct.Struct("<HIIH")


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """A Ceph user (without ``client.``) and its key; neither ``repr`` nor ``str`` shows the key."""

    user_id: str
    key: str = field(repr=False)

    @classmethod
    def from_secrets(cls, secrets: Mapping[str, str]) -> Self:
        """Read ``userID`` and ``userKey``, or the ``key`` and ``adminId`` of an in-tree volume's secret.

        Raises InvalidArgument naming what is missing; no value of the secret is ever in the message.
        """
        if not secrets:
            raise InvalidArgument("secrets: expected userID and userKey, got none")
        if secrets.get("key"):
            return cls(user_id=secrets.get("adminId") or _MIGRATION_USER, key=_checked("key", secrets["key"]))
        for name in ("userID", "userKey"):
            if not secrets.get(name):
                raise InvalidArgument(f"secrets: expected {name}, it is missing or empty")
        return cls(user_id=secrets["userID"], key=_checked("userKey", secrets["userKey"]))


def _checked(name: str, key: str) -> str:
    key = key.strip()
    # librados prints a key that it cannot decode.
    if not _is_ceph_key(key):
        raise InvalidArgument(f"secrets: expected {name} to be a Ceph key, as `ceph auth get-key` prints it; it is not")
    return key


def _is_ceph_key(text: str) -> bool:
    try:
        decoded = base64.b64decode(text, validate=True)
    except ValueError:
        return False
    if len(decoded) <= _KEY_HEADER.size:
        return False
    *_, length = _KEY_HEADER.unpack_from(decoded)
    return len(decoded) == _KEY_HEADER.size + int(length)
