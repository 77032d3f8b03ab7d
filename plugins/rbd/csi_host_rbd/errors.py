"""The rbd driver's facts, each as the CSI outcome it means."""

from csi_host.errors import AlreadyExists, FailedPrecondition, NotFound


class VolumeNotFound(NotFound):
    """No volume has this handle."""


class VolumeInUse(FailedPrecondition):
    """Somebody has the image open; the message says who."""


class VolumeIsSecondary(FailedPrecondition):
    """The image is a mirror's copy: its primary, in another cluster, owns it."""


class VolumeDiffers(AlreadyExists):
    """The name belongs to a volume that does not fit the request."""


class ClusterNotServed(FailedPrecondition):
    """A handle names a cluster that the configuration does not have."""
