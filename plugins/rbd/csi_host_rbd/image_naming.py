"""The uuid at the end of an image's name: by it an image, and a snapshot taken for one, lead to the journal."""

import uuid as uuids

from csi_host_rbd.volume_id import UUID_LENGTH

# The image between a cloned volume and its source, in ceph-csi's layout: it goes with the volume.
TEMPORARY_SUFFIX = "-temp"


def uuid_in(name: str) -> str:
    """Return the uuid that a name ends in, "" when it is no name that a driver gives; ``-temp`` does not count."""
    text = name.removesuffix(TEMPORARY_SUFFIX)[-UUID_LENGTH:]
    try:
        return text if str(uuids.UUID(text)) == text else ""
    except ValueError:
        return ""
