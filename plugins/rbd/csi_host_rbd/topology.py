"""Pools by topology: which pool of a class a volume goes to, so that the nodes that may use it can reach it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from csi_host.errors import InvalidArgument, ResourceExhausted

_PARAMETER = "parameters[topologyConstrainedPools]"
_EXAMPLE = '[{"poolName": …, "dataPool": …, "domainSegments": [{"domainLabel": …, "value": …}]}]'


class TopologyUnserved(ResourceExhausted):
    """No pool of the class is where the volume has to be; the provisioner then tries another node."""


@dataclass(frozen=True, kw_only=True)
class TopologyRequirement:
    """Where a volume has to be reachable from: segments by key, the preferred ones in order of preference."""

    preferred: Sequence[Mapping[str, str]] = ()
    requisite: Sequence[Mapping[str, str]] = ()


@dataclass(frozen=True, kw_only=True)
class TopologyPool:
    """A pool and the domains whose nodes reach it: values by label; none means that all nodes do."""

    pool: str
    data_pool: str = ""
    domains: Mapping[str, str] = field(default_factory=dict)

    def serves(self, segments: Mapping[str, str]) -> bool:
        """Whether nodes with these segments reach it; keys count by what follows their slash, as in ceph-csi."""
        values = {_label(key): value for key, value in segments.items()}
        return all(values.get(_label(label)) == value for label, value in self.domains.items())


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A pool that serves a topology; ``segments`` is what it is accessible from."""

    pool: TopologyPool
    segments: Mapping[str, str]


def choices(pools: Sequence[TopologyPool], requirement: TopologyRequirement) -> list[Choice]:
    """Return the pools that serve the requirement, the best first; raises TopologyUnserved when there is none."""
    found: dict[str, Choice] = {}
    for segments in (*requirement.preferred, *requirement.requisite):
        for pool in pools:
            if pool.serves(segments):
                found.setdefault(pool.pool, Choice(pool=pool, segments=dict(segments)))
    if not found:
        raise TopologyUnserved(
            f"accessibility_requirements: none of the pools of {_PARAMETER} "
            f"({', '.join(pool.pool for pool in pools)}) serves them"
        )
    return list(found.values())


def parse_pools(text: str) -> tuple[TopologyPool, ...]:
    """Return the pools of a class; raises InvalidArgument. () for an empty text."""
    if not text.strip():
        return ()
    try:
        elements = json.loads(text.replace("\n", " "))
    except ValueError:
        raise _wrong("JSON") from None
    if not isinstance(elements, list) or not elements:
        raise _wrong("a list with at least one pool")
    return tuple(_pool(element, position) for position, element in enumerate(elements))


def _pool(element: Any, position: int) -> TopologyPool:
    if not isinstance(element, dict):
        raise _wrong(f"an object as element {position}")
    name, data_pool, segments = element.get("poolName"), element.get("dataPool", ""), element.get("domainSegments", [])
    if not isinstance(name, str) or not name:
        raise _wrong(f"a poolName in element {position}")
    if not isinstance(data_pool, str):
        raise _wrong(f"text as dataPool in element {position}")
    if not isinstance(segments, list):
        raise _wrong(f"a list as domainSegments in element {position}")
    return TopologyPool(pool=name, data_pool=data_pool, domains=dict(_domain(one, position) for one in segments))


def _domain(segment: Any, position: int) -> tuple[str, str]:
    label, value = (segment.get("domainLabel"), segment.get("value")) if isinstance(segment, dict) else (None, None)
    if not isinstance(label, str) or not label or not isinstance(value, str):
        raise _wrong(f"a domainLabel and a value in each of the domainSegments of element {position}")
    return label, value


def _label(key: str) -> str:
    return key.rpartition("/")[2]


def _wrong(expected: str) -> InvalidArgument:
    return InvalidArgument(f"{_PARAMETER}: expected {expected}, as in {_EXAMPLE}")
