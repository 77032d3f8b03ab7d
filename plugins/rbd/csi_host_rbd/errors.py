"""The rbd driver's facts, each as the CSI outcome it means."""

from csi_host.errors import (
    Aborted,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)


class VolumeNotFound(NotFound):
    """No volume has this handle."""


class SnapshotNotFound(NotFound):
    """No snapshot has this handle."""


class GroupSnapshotNotFound(NotFound):
    """No group snapshot has this handle."""


class VolumeInUse(FailedPrecondition):
    """Somebody has the image open; the message says who."""


class VolumeHasSnapshots(FailedPrecondition):
    """The image has snapshots that somebody took by hand."""


class VolumeIsSecondary(FailedPrecondition):
    """The image is a mirror's copy: its primary, in another cluster, owns it."""


class VolumeDiffers(AlreadyExists):
    """The name belongs to a volume that does not fit the request."""


class ClusterNotServed(FailedPrecondition):
    """A handle names a cluster that the configuration does not have."""


class SnapshotInUse(FailedPrecondition):
    """Somebody has the image of a snapshot open; the message says who."""


class SnapshotDiffers(AlreadyExists):
    """The name belongs to a snapshot of another volume."""


class SnapshotInGroup(InvalidArgument):
    """The snapshot is a part of a group snapshot, and goes with it."""


class GroupSnapshotDiffers(AlreadyExists):
    """The name belongs to a group snapshot of other volumes."""


class VolumesApart(FailedPrecondition):
    """No snapshot of these volumes at one point in time is possible."""


class SourceUnfit(InvalidArgument):
    """A volume cannot be made from this source."""


class FlattenPending(Aborted):
    """The chain of clones is too long; it is being cut, and the next call may go on."""


class TooManySnapshots(ResourceExhausted):
    """An image has as many snapshots as it may have; room is being made."""


class SnapshotsUnrelated(InvalidArgument):
    """Two snapshots are not an older and a newer one of the same volume."""


class SnapshotEncrypted(FailedPrecondition):
    """What the image has at an offset is not what the volume has there."""
