"""The figures of the clusters' pools, asked for at most once in a few seconds: one question serves all classes."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Lock

from csi_host.request import seconds_for
from csi_host_rbd.backend import Cluster
from csi_host_rbd.ceph.failures import BackendTimeout
from csi_host_rbd.ceph.usage import PoolUsage, read_usage

_SECONDS = 5.0
_WAIT_SECONDS = 10.0


@dataclass
class _Kept:
    asking: Lock = field(default_factory=Lock)
    figures: Mapping[int, PoolUsage] = field(default_factory=dict)
    until: float = 0.0


class PoolFigures:
    """The pools of each cluster by id, no older than ``seconds``: the cluster's own figures lag as far behind."""

    def __init__(self, *, seconds: float = _SECONDS) -> None:
        self._seconds = seconds
        self._guard = Lock()
        self._kept: dict[str, _Kept] = {}

    def of(self, cluster: Cluster, *, needed: int | None = None) -> Mapping[int, PoolUsage]:
        """Return the pools of a cluster, asking anew when the ``needed`` one is not known yet.

        Two monitor commands, or none.
        """
        with self._guard:
            kept = self._kept.setdefault(cluster.config.cluster_id, _Kept())
        # One call asks, the others wait for its answer.
        seconds = seconds_for("asking for the pools' figures", at_most=_WAIT_SECONDS)
        if not kept.asking.acquire(timeout=seconds):
            raise BackendTimeout(f"the pools' figures: another call has been asking for them for {seconds:g} s")
        try:
            if time.monotonic() >= kept.until or (needed is not None and needed not in kept.figures):
                kept.figures = read_usage(cluster.connection)
                kept.until = time.monotonic() + self._seconds
            return kept.figures
        finally:
            kept.asking.release()
