"""A snapshot, as CSI tells of it."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A snapshot that exists; ``created_at`` has a zone.

    ``source_volume_id`` and ``group_id`` are handles; the latter is of the group snapshot that it is a part of, "" for
    none. ``is_ready`` is False while its chain is too deep for a volume to be made from it: it is being flattened.
    """

    snapshot_id: str
    source_volume_id: str
    size_bytes: int
    created_at: datetime
    is_ready: bool
    group_id: str = ""
