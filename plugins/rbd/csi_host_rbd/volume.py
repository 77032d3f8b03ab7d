"""A volume, as CreateVolume asks for it and as CSI tells of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from csi_host.capacity import CapacityRange
from csi_host_rbd.content_source import Source
from csi_host_rbd.encryption.keys import Keys
from csi_host_rbd.modification import Modification
from csi_host_rbd.parameters import VolumeParameters
from csi_host_rbd.topology import TopologyRequirement
from csi_host_rbd.volume_id import VolumeId


@dataclass(frozen=True, kw_only=True)
class WantedVolume:
    """What CreateVolume asks for: ``size_bytes`` is already rounded, ``capacity`` what the caller accepts.

    A volume that is made from a source has at least the source's size. ``keys`` is None for one without encryption.
    """

    name: str
    size_bytes: int
    capacity: CapacityRange
    parameters: VolumeParameters
    source: Source = None
    keys: Keys | None = None
    modification: Modification = field(default_factory=Modification)
    requirement: TopologyRequirement | None = None

    @property
    def is_constrained(self) -> bool:
        """Whether the pool is chosen by topology."""
        return bool(self.parameters.topology_pools) and self.requirement is not None


@dataclass(frozen=True, kw_only=True)
class Volume:
    """A volume that exists; ``size_bytes`` is the image's, ``topology`` the segments that it is accessible from."""

    volume_id: VolumeId
    size_bytes: int
    pool: str
    journal_pool: str
    namespace: str
    image_name: str
    data_pool: str = ""
    topology: Mapping[str, str] = field(default_factory=dict)
