"""Read affinity: which map options make the kernel's client read from the OSDs that are nearest to this node.

A node's place is in its Kubernetes labels; which of them are CRUSH locations is said in config.json
(``readAffinity``), for clusters that say nothing by ``--crush-location-labels`` with ``--enable-read-affinity``.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from csi_host.errors import CsiError
from csi_host_rbd.clusters import ClusterConfig

log = logging.getLogger(__name__)

# Kubernetes' label kubernetes.io/hostname is what Ceph calls a host.
_TYPES = {"hostname": "host"}


@dataclass(frozen=True, kw_only=True)
class ReadAffinity:
    """What this node can say of its place: ``labels`` are the node's, ``location_labels`` the ones of the flag.

    ``is_enabled`` is the flag's, for clusters whose configuration names no labels of their own. ``config_of`` returns
    a cluster's configuration.
    """

    config_of: Callable[[str], ClusterConfig]
    labels: Mapping[str, str]
    is_enabled: bool = False
    location_labels: Sequence[str] = ()

    def options(self, cluster_id: str) -> str:
        """Return the map options for images of a cluster, "" where none are wanted or this node has no place."""
        location = crush_location(self._wanted(cluster_id), self.labels)
        return f"read_from_replica=localize,crush_location={location}" if location else ""

    def _wanted(self, cluster_id: str) -> Sequence[str]:
        try:
            config = self.config_of(cluster_id)
        except CsiError:
            return ()
        if not config.read_affinity:
            return ()
        return config.crush_location_labels or (self.location_labels if self.is_enabled else ())


def crush_location(names: Sequence[str], labels: Mapping[str, str]) -> str:
    """Return ``zone:z1|host:n1`` of those labels that the node has; dots in a value become dashes, as in ceph-csi."""
    places = {}
    for name in names:
        value = labels.get(name, "").replace(".", "-")
        kind = name.rpartition("/")[2]
        if value:
            places[_TYPES.get(kind, kind)] = value
    return "|".join(f"{kind}:{value}" for kind, value in places.items())
