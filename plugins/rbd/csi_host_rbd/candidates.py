"""The pools that a volume may go to, the best first: one, or those that the class has for a topology."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from csi_host.errors import InvalidArgument
from csi_host_rbd.content_source import SnapshotSource, Source, VolumeSource
from csi_host_rbd.topology import TopologyRequirement, choices
from csi_host_rbd.volume import Volume, WantedVolume
from csi_host_rbd.volume_id import InvalidVolumeId, VolumeId


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What is wanted, with one pool of the class as the pool; ``topology`` is what that is accessible from."""

    wanted: WantedVolume
    topology: Mapping[str, str] = field(default_factory=dict)

    def completed(self, volume: Volume) -> Volume:
        """Return the volume with what it says of its place."""
        return replace(volume, data_pool=self.wanted.parameters.data_pool, topology=self.topology)


def is_beside_source(source: Source, pool_id: int) -> bool:
    """Whether a pool is the source's: nodes that reach a clone in another one may not reach what it hangs on."""
    match source:
        case SnapshotSource(snapshot_id=handle) | VolumeSource(volume_id=handle):
            try:
                return VolumeId.parse(handle).pool_id == pool_id
            except InvalidVolumeId:
                # Looking for it says what is wrong with it.
                return True
    return True


def candidates_of(wanted: WantedVolume) -> list[Candidate]:
    """Return where a volume may go, at least one; raises TopologyUnserved, InvalidArgument for a class without a pool.

    Without accessibility requirements the class's plain pool is meant, as in ceph-csi.
    """
    parameters = wanted.parameters
    if not wanted.is_constrained:
        if not parameters.pool:
            raise InvalidArgument(
                "parameters[pool]: required, as the request has no accessibility_requirements to choose one of "
                "parameters[topologyConstrainedPools] by"
            )
        return [Candidate(wanted=wanted)]
    return [
        Candidate(
            wanted=replace(
                wanted, parameters=replace(parameters, pool=choice.pool.pool, data_pool=choice.pool.data_pool)
            ),
            topology=choice.segments,
        )
        for choice in choices(parameters.topology_pools, wanted.requirement or TopologyRequirement())
    ]
