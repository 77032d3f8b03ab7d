from csi_host.locks import VolumeLocks


class GroupLocks(VolumeLocks):
    """One operation at a time per group snapshot: keys are its ids and the CO's names for them."""

    noun = "Volume group ID"
