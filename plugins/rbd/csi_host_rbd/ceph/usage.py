"""How full the pools of a cluster are, as the monitors say it; a user with ``profile rbd`` may ask."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from csi_host_rbd.ceph.cluster import Connection
from csi_host_rbd.ceph.failures import BackendUnavailable

_STATISTICS = {"prefix": "df", "format": "json"}
_POOLS = {"prefix": "osd pool ls", "detail": "detail", "format": "json"}


@dataclass(frozen=True, kw_only=True)
class PoolUsage:
    """A pool's figures. ``available_bytes`` is what may still be written, replication and the quota considered.

    ``flags`` are the pool's in the OSD map, such as ``full``, ``full_quota`` and ``nearfull``.
    """

    name: str
    available_bytes: int
    flags: frozenset[str]


def read_usage(connection: Connection) -> Mapping[int, PoolUsage]:
    """Return the figures of all pools by id. Two monitor commands, no operation."""
    statistics = {pool["id"]: pool["stats"] for pool in _answer(connection, _STATISTICS)["pools"]}
    pools = _answer(connection, _POOLS)
    # A pool that was made a moment ago has no statistics yet.
    return {pool["pool_id"]: _usage(pool, statistics.get(pool["pool_id"], {})) for pool in pools}


def _answer(connection: Connection, command: Mapping[str, str]) -> Any:
    try:
        return json.loads(connection.monitor_command(command))
    except ValueError as error:
        raise BackendUnavailable(f"monitor command {command['prefix']!r}: the answer is not JSON") from error


def _usage(pool: Mapping[str, Any], statistics: Mapping[str, Any]) -> PoolUsage:
    available, quota = int(statistics.get("max_avail", 0)), int(pool["quota_max_bytes"])
    if quota:
        # The monitors compare the quota with the bytes that were written, before replication.
        available = min(available, quota - int(statistics.get("stored", 0)))
    flags = frozenset(str(pool["flags_names"]).split(","))
    is_full = flags & {"full", "full_quota"}
    return PoolUsage(name=str(pool["pool_name"]), available_bytes=0 if is_full else max(0, available), flags=flags)
