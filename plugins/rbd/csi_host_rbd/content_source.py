"""What a volume is to be made from, by its handle."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SnapshotSource:
    """A volume is to be made from the snapshot of this handle."""

    snapshot_id: str


@dataclass(frozen=True, kw_only=True)
class VolumeSource:
    """A volume is to be made from the volume of this handle."""

    volume_id: str


Source = SnapshotSource | VolumeSource | None
