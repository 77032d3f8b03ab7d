"""The Ceph clusters that a volume can be on: ceph-csi's config.json."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csi_host.errors import FailedPrecondition, InvalidArgument
from csi_host_rbd.watched_file import FileUnreadable, WatchedFile


class ClusterNotConfigured(InvalidArgument):
    """The configuration has no cluster of this id."""


class ClustersFileInvalid(FailedPrecondition):
    """The file of clusters cannot be read or used; the message never shows its text."""


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """One cluster: how to reach it and where in its pools the driver works.

    ``mirror_daemon_count`` is how many rbd-mirror daemons watch a primary image. ``crush_location_labels`` are the
    node labels for ``read_affinity``, none for those of the driver's settings.
    """

    cluster_id: str
    monitors: tuple[str, ...]
    rados_namespace: str = ""
    net_namespace_file: str = ""
    mirror_daemon_count: int = 1
    read_affinity: bool = False
    crush_location_labels: tuple[str, ...] = ()

    @property
    def mon_host(self) -> str:
        """The monitors as librados takes them."""
        return ",".join(self.monitors)


@dataclass(frozen=True, kw_only=True)
class _Stamp:
    mtime_ns: int
    size: int
    inode: int


class Clusters:
    """The clusters in a file, read again whenever the file has changed: an edit needs no restart."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = WatchedFile(path, self._parsed)

    def find(self, cluster_id: str) -> ClusterConfig:
        """Return the cluster of this id; raises ClusterNotConfigured, ClustersFileInvalid."""
        element = self._read().get(cluster_id)
        if element is None:
            raise ClusterNotConfigured(f"missing configuration for cluster ID {cluster_id!r} in {self._path}")
        return _Element(self._path, cluster_id, element).config()

    def ids(self) -> list[str]:
        """Return the ids of all clusters, in order; raises ClustersFileInvalid."""
        return sorted(self._read())

    def _read(self) -> Mapping[str, Mapping[str, Any]]:
        try:
            return self._file.read()
        except FileNotFoundError as error:
            raise ClustersFileInvalid(
                f"the file of Ceph clusters {self._path} cannot be read: {error.strerror}"
            ) from None
        except FileUnreadable as why:
            raise ClustersFileInvalid(f"the file of Ceph clusters {self._path} {why}") from None

    def _parsed(self, loaded: Any) -> Mapping[str, Mapping[str, Any]]:
        if not isinstance(loaded, list) or not all(isinstance(element, dict) for element in loaded):
            raise ClustersFileInvalid(f"the file of Ceph clusters {self._path}: expected an array of objects")
        elements: dict[str, Mapping[str, Any]] = {}
        for position, element in enumerate(loaded):
            cluster_id = element.get("clusterID")
            if not isinstance(cluster_id, str) or not cluster_id:
                raise ClustersFileInvalid(
                    f"the file of Ceph clusters {self._path}: element {position}: expected a clusterID"
                )
            # The first one counts, as in ceph-csi.
            elements.setdefault(cluster_id, element)
        return elements


@dataclass(frozen=True)
class _Element:
    """One cluster's members as the file has them; members that are not named here are ignored."""

    path: Path
    cluster_id: str
    members: Mapping[str, Any]

    def config(self) -> ClusterConfig:
        rbd, affinity = self._object(self.members, "rbd"), self._object(self.members, "readAffinity")
        return ClusterConfig(
            cluster_id=self.cluster_id,
            monitors=self._monitors(),
            rados_namespace=self._text(rbd, "radosNamespace"),
            net_namespace_file=self._text(rbd, "netNamespaceFilePath"),
            mirror_daemon_count=self._count(rbd, "mirrorDaemonCount"),
            read_affinity=self._truth(affinity, "enabled"),
            crush_location_labels=self._texts(affinity, "crushLocationLabels"),
        )

    def _monitors(self) -> tuple[str, ...]:
        monitors = self._texts(self.members, "monitors")
        if not monitors:
            raise self._wrong("monitors", "a list with at least one address")
        return monitors

    def _object(self, members: Mapping[str, Any], name: str) -> Mapping[str, Any]:
        value = members.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self._wrong(name, "an object")
        return value

    def _text(self, members: Mapping[str, Any], name: str) -> str:
        value = members.get(name) or ""
        if not isinstance(value, str):
            raise self._wrong(name, "text")
        return value

    def _texts(self, members: Mapping[str, Any], name: str) -> tuple[str, ...]:
        value = members.get(name) or []
        if not isinstance(value, list) or not all(isinstance(text, str) and text for text in value):
            raise self._wrong(name, "a list of texts")
        return tuple(value)

    def _truth(self, members: Mapping[str, Any], name: str) -> bool:
        value = members.get(name) or False
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false")
        return value

    def _count(self, members: Mapping[str, Any], name: str) -> int:
        value = members.get(name) or 0
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self._wrong(name, "a number, 0 or more")
        return value or 1

    def _wrong(self, name: str, expected: str) -> ClustersFileInvalid:
        return ClustersFileInvalid(
            f"the file of Ceph clusters {self.path}: cluster ID {self.cluster_id!r}: {name}: expected {expected}"
        )
