"""VolumeGroupSnapshotClass parameters: what they mean and what is wrong with them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from csi_host_rbd.parameters import GROUP_SNAPSHOT_METADATA_PARAMETERS, parse_name_prefix
from csi_host_rbd.snapshot_parameters import SnapshotParameters, parse_snapshot_parameters

DEFAULT_GROUP_PREFIX = "csi-vol-group-"


@dataclass(frozen=True, kw_only=True)
class GroupSnapshotParameters:
    """A VolumeGroupSnapshotClass, understood; ``of_snapshots`` is what it says of each volume's snapshot."""

    name_prefix: str = DEFAULT_GROUP_PREFIX
    of_snapshots: SnapshotParameters = field(default_factory=SnapshotParameters)


def parse_group_parameters(parameters: Mapping[str, str]) -> GroupSnapshotParameters:
    """Return what a VolumeGroupSnapshotClass asks for; raises InvalidArgument naming the parameter.

    ``pool`` is taken and has no effect: all is in the pool of the volumes.
    """
    names = {name: parameters[name] for name in GROUP_SNAPSHOT_METADATA_PARAMETERS if name in parameters}
    of_snapshots = parse_snapshot_parameters(parameters)
    return GroupSnapshotParameters(
        name_prefix=parse_name_prefix(parameters, "volumeGroupNamePrefix", DEFAULT_GROUP_PREFIX),
        of_snapshots=SnapshotParameters(
            cluster_id=of_snapshots.cluster_id,
            name_prefix=of_snapshots.name_prefix,
            metadata={**of_snapshots.metadata, **names},
        ),
    )
