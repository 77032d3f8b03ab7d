"""Where volumes are after a disaster: ceph-csi's cluster-mapping.json, which pairs the ids of two sites.

``[{"clusterIDMapping": {"site1": "site2"}, "RBDPoolIDMapping": [{"1": "2"}]}]``; each pair counts both ways. A handle
keeps the ids of the site that made the volume; where that has none, the other site's ids are tried.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csi_host.errors import FailedPrecondition


class MappingFileInvalid(FailedPrecondition):
    """The file cannot be read or understood."""


@dataclass(frozen=True, kw_only=True)
class _Site:
    clusters: Mapping[str, str]
    pools: Sequence[Mapping[str, str]]


class ClusterMapping:
    """The pairs in a file, which need not exist; it is read at each use."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def partners(self, cluster_id: str) -> Iterator[str]:
        """Yield the clusters that are paired with one; raises MappingFileInvalid."""
        for site in self._read():
            yield from _partners(site.clusters, cluster_id)

    def elsewhere(self, cluster_id: str, pool_id: int) -> Iterator[tuple[str, int]]:
        """Yield the other ids of a cluster and a pool of it; raises MappingFileInvalid."""
        for site in self._read():
            for cluster in _partners(site.clusters, cluster_id):
                for pools in site.pools:
                    for pool in _partners(pools, str(pool_id)):
                        yield cluster, self._number(pool)

    def _read(self) -> list[_Site]:
        try:
            elements = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return []
        except (OSError, ValueError):
            raise MappingFileInvalid(f"the cluster mapping {self._path} cannot be read, or is not JSON") from None
        if not isinstance(elements, list):
            raise self._wrong("a list of objects")
        return [self._site(element) for element in elements]

    def _site(self, element: Any) -> _Site:
        if not isinstance(element, dict):
            raise self._wrong("a list of objects")
        pools = element.get("RBDPoolIDMapping") or []
        if not isinstance(pools, list):
            raise self._wrong("a list as RBDPoolIDMapping")
        return _Site(
            clusters=self._pairs(element.get("clusterIDMapping") or {}, "clusterIDMapping"),
            pools=[self._pairs(one, "RBDPoolIDMapping") for one in pools],
        )

    def _pairs(self, value: Any, name: str) -> Mapping[str, str]:
        if not isinstance(value, dict) or not all(isinstance(one, str) for one in value.values()):
            raise self._wrong(f"pairs of texts in {name}")
        return value

    def _number(self, text: str) -> int:
        if not (text.isascii() and text.isdigit()):
            raise self._wrong("decimal pool ids in RBDPoolIDMapping")
        return int(text)

    def _wrong(self, expected: str) -> MappingFileInvalid:
        return MappingFileInvalid(f"the cluster mapping {self._path}: expected {expected}")


def _partners(pairs: Mapping[str, str], one: str) -> Iterator[str]:
    for left, right in pairs.items():
        if one == left:
            yield right
        elif one == right:
            yield left
