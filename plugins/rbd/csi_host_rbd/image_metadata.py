"""What an image says of whom it belongs to: Kubernetes' names, under ceph-csi's keys."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from csi_host_rbd.ceph.image import Image
from csi_host_rbd.parameters import (
    GROUP_SNAPSHOT_METADATA_PARAMETERS,
    METADATA_PARAMETERS,
    SNAPSHOT_METADATA_PARAMETERS,
)

CLUSTER_NAME = "csi.ceph.com/cluster/name"
_KEYS = frozenset(
    {*METADATA_PARAMETERS, *SNAPSHOT_METADATA_PARAMETERS, *GROUP_SNAPSHOT_METADATA_PARAMETERS, CLUSTER_NAME}
)


@dataclass(frozen=True, kw_only=True)
class MetadataChanges:
    """What is to be written and removed."""

    wanted: Mapping[str, str] = field(default_factory=dict)
    unwanted: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.wanted or self.unwanted)

    def __add__(self, other: "MetadataChanges") -> "MetadataChanges":
        return MetadataChanges(
            wanted={**self.wanted, **other.wanted}, unwanted=self.unwanted | other.unwanted - other.wanted.keys()
        )

    def apply(self, image: Image) -> None:
        """Write and remove it, on an image open for writing."""
        for name in sorted(self.unwanted):
            image.remove_metadata(name)
        for name, value in self.wanted.items():
            image.set_metadata(name, value)


@dataclass(frozen=True, kw_only=True)
class NamesOnImages:
    """Whether names are written, and the name of this Kubernetes cluster."""

    are_written: bool
    cluster_name: str = ""

    def changes(self, names: Mapping[str, str], *, present: Mapping[str, str], is_copy: bool) -> MetadataChanges:
        """Return what has to change for an image to bear ``names``.

        A clone has the metadata of its source: the names that are not its own go, also where none are written.
        """
        wanted = dict(names) if self.are_written else {}
        if self.are_written and self.cluster_name:
            wanted[CLUSTER_NAME] = self.cluster_name
        foreign = frozenset(present) & _KEYS - wanted.keys() if is_copy else frozenset()
        return MetadataChanges(
            wanted={name: value for name, value in wanted.items() if present.get(name) != value}, unwanted=foreign
        )
