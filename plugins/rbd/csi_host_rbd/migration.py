"""The handles of volumes that Kubernetes' own driver made before CSI, as its migration to CSI writes them.

``mig_mons-<cluster id>_image-<rest of the image's name>_<pool name in hex>``: there is no journal entry, only an image.
"""

from dataclasses import dataclass

from csi_host_rbd.volume_id import InvalidVolumeId

_PREFIX = "mig"
_IMAGE = "image-"
_MONITORS = "mons-"
_IMAGE_NAME = "kubernetes-dynamic-pvc-"
_PARTS = 4


@dataclass(frozen=True, kw_only=True)
class MigratedVolume:
    """A decoded handle: ``cluster_id`` is the digest of the monitors, under which config.json has the cluster."""

    cluster_id: str
    pool: str
    image: str


def is_migrated(handle: str) -> bool:
    """Whether a handle is one of these."""
    return handle.startswith(_PREFIX) and _IMAGE in handle and _MONITORS in handle


def parse_migrated(handle: str) -> MigratedVolume:
    """Decode a handle; raises InvalidVolumeId."""
    parts = handle.split("_")
    if len(parts) < _PARTS:
        raise InvalidVolumeId(f"a migrated volume's handle has {_PARTS} parts, this one has {len(parts)}")
    head, pool = parts[: _PARTS - 1], "_".join(parts[_PARTS - 1 :])
    image = next((part.removeprefix(_IMAGE) for part in head if part.startswith(_IMAGE)), "")
    cluster_id = next((part.removeprefix(_MONITORS) for part in head if part.startswith(_MONITORS)), "")
    if not image or not cluster_id:
        raise InvalidVolumeId(f"a migrated volume's handle has a part {_IMAGE}… and a part {_MONITORS}…")
    try:
        name = bytes.fromhex(pool).decode()
    except ValueError:
        name = ""
    if not name:
        raise InvalidVolumeId("a migrated volume's handle ends in the pool's name in hexadecimal digits")
    return MigratedVolume(cluster_id=cluster_id, pool=name, image=_IMAGE_NAME + image)
