"""VolumeSnapshotClass parameters: what they mean and what is wrong with them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from csi_host.errors import InvalidArgument
from csi_host_rbd.parameters import RESERVED_PREFIX, SNAPSHOT_METADATA_PARAMETERS, parse_name_prefix

DEFAULT_SNAPSHOT_PREFIX = "csi-snap-"
_OWNER = RESERVED_PREFIX + "volumesnapshot/namespace"


@dataclass(frozen=True, kw_only=True)
class SnapshotParameters:
    """A VolumeSnapshotClass, understood; ``cluster_id`` "" is that of the volume."""

    cluster_id: str = ""
    name_prefix: str = DEFAULT_SNAPSHOT_PREFIX
    owner: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


def parse_snapshot_parameters(parameters: Mapping[str, str]) -> SnapshotParameters:
    """Return what a VolumeSnapshotClass asks for; raises InvalidArgument naming the parameter.

    ``pool`` is taken and has no effect, as in ceph-csi: a snapshot is always in its volume's pool.
    """
    if parameters.get("pool") == "":
        raise InvalidArgument("parameters[pool]: expected a value, got an empty one; leave it out instead")
    return SnapshotParameters(
        cluster_id=parameters.get("clusterID", ""),
        name_prefix=parse_name_prefix(parameters, "snapshotNamePrefix", DEFAULT_SNAPSHOT_PREFIX),
        owner=parameters.get(_OWNER, ""),
        metadata={name: parameters[name] for name in SNAPSHOT_METADATA_PARAMETERS if name in parameters},
    )
