"""Where a list goes on: a place in the journals, as a text that the caller keeps between two pages.

It names the last entry of a page, not a number of entries, so it stays right while volumes come and go: nothing that
is there all along is left out or comes twice. The CSI spec allows 128 bytes, and a CO name alone may have as many, so
of a long name only the beginning is in the token, with the uuid that leads to the whole of it. When that entry is gone
by the next call the list goes on behind the beginning of its name: what follows may then come twice, but is never
missed.

``<version>.<kind>.<digest of the cluster id>.<pool id>.<uuid of a long name>.<name>``
"""

import hashlib
from dataclasses import dataclass
from typing import Self

from csi_host.errors import Aborted

_VERSION = "1"
_LIMIT_BYTES = 128
_DIGEST_CHARACTERS = 8
_FIELDS = 6
_HEX = frozenset("0123456789abcdef")


class PageTokenInvalid(Aborted):
    """The token is none of ours, or its cluster is gone; ABORTED is the spec's code: the caller begins anew."""


@dataclass(frozen=True, kw_only=True)
class PageToken:
    """The last entry of a page. ``uuid`` is set when ``name`` is only the beginning of its CO name."""

    kind: str
    cluster_digest: str
    pool_id: int
    name: str
    uuid: str = ""

    @classmethod
    def after(cls, *, kind: str, cluster_id: str, pool_id: int, name: str, uuid: str) -> Self:
        """Return the token of an entry, with as much of its name as there is room for."""
        digest = digest_of(cluster_id)
        whole = cls(kind=kind, cluster_digest=digest, pool_id=pool_id, name=name)
        if len(str(whole).encode()) <= _LIMIT_BYTES:
            return whole
        room = _LIMIT_BYTES - len(str(cls(kind=kind, cluster_digest=digest, pool_id=pool_id, name="", uuid=uuid)))
        beginning = name.encode()[:room].decode(errors="ignore")
        return cls(kind=kind, cluster_digest=digest, pool_id=pool_id, name=beginning, uuid=uuid)

    @classmethod
    def parse(cls, text: str, *, kind: str) -> Self:
        """Read a token of a list of this ``kind``; raises PageTokenInvalid."""
        fields = text.split(".", _FIELDS - 1)
        if len(fields) != _FIELDS or fields[0] != _VERSION or fields[1] != kind:
            raise PageTokenInvalid(f"starting_token: {text!r} is no token of this list; begin without one")
        _, _, cluster_digest, pool_id, uuid, name = fields
        if not pool_id or not set(pool_id) <= _HEX or not name:
            raise PageTokenInvalid(f"starting_token: {text!r} is damaged; begin without one")
        return cls(kind=kind, cluster_digest=cluster_digest, pool_id=int(pool_id, 16), name=name, uuid=uuid)

    def __str__(self) -> str:
        return ".".join([_VERSION, self.kind, self.cluster_digest, f"{self.pool_id:x}", self.uuid, self.name])


def digest_of(cluster_id: str) -> str:
    """Return the short form by which a token names a cluster."""
    return hashlib.sha256(cluster_id.encode(errors="surrogatepass")).hexdigest()[:_DIGEST_CHARACTERS]
