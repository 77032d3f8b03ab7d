"""StorageClass parameters: what they mean and what is wrong with them."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import ClassVar

from csi_host.errors import InvalidArgument
from csi_host_common_node.filesystem import parse_mkfs_options
from csi_host_rbd.attach.nbd_logs import STRATEGIES, is_directory_name
from csi_host_rbd.encryption.parameters import EncryptionParameters, parse_encryption
from csi_host_rbd.features import Feature, parse_features
from csi_host_rbd.map_wishes import MapWishes
from csi_host_rbd.options import MOUNTERS
from csi_host_rbd.topology import TopologyPool, parse_pools
from csi_host_rbd.truth import truth_of

log = logging.getLogger(__name__)

RESERVED_PREFIX = "csi.storage.k8s.io/"
OWNER_PARAMETER = RESERVED_PREFIX + "pvc/namespace"
# What --setmetadata writes on an image, under the same names as ceph-csi.
METADATA_PARAMETERS = (
    RESERVED_PREFIX + "pvc/name",
    RESERVED_PREFIX + "pvc/namespace",
    RESERVED_PREFIX + "pv/name",
)
SNAPSHOT_METADATA_PARAMETERS = (
    RESERVED_PREFIX + "volumesnapshot/name",
    RESERVED_PREFIX + "volumesnapshot/namespace",
    RESERVED_PREFIX + "volumesnapshotcontent/name",
)
GROUP_SNAPSHOT_METADATA_PARAMETERS = (
    RESERVED_PREFIX + "volumegroupsnapshot/name",
    RESERVED_PREFIX + "volumegroupsnapshot/namespace",
    RESERVED_PREFIX + "volumegroupsnapshotcontent/name",
)
DEFAULT_NAME_PREFIX = "csi-vol-"

_KNOWN = frozenset(
    {
        "clusterID", "pool", "dataPool", "radosNamespace", "volumeNamePrefix", "imageFeatures", "mounter", "mapOptions",
        "unmapOptions", "mkfsOptions", "tryOtherMounters", "encrypted", "encryptionKMSID", "encryptionType",
        "cephLogDir", "cephLogStrategy", "stripeUnit", "stripeCount", "objectSize", "topologyConstrainedPools",
        "thickProvision",
    }
)  # fmt: skip
# What a node has no use for, and what is too long for it.
_KEPT_BACK = frozenset({"topologyConstrainedPools"})
# librbd's limits: objects of 4 KiB to 32 MiB, 4 MiB when nothing is said.
_MAX_PREFIX_BYTES = 128
_MAX_NUMBER = 2**32 - 1
_MAX_DIGITS = 10
_MIN_ORDER, _MAX_ORDER, _DEFAULT_ORDER = 12, 25, 22


@dataclass(frozen=True, kw_only=True)
class Striping:
    """How an image is cut into objects: ``order`` is the exponent of the object size, None for librbd's default."""

    order: int | None = None
    unit_bytes: int = 0
    count: int = 0

    DEFAULT_OBJECT_BYTES: ClassVar[int] = 1 << _DEFAULT_ORDER


@dataclass(frozen=True, kw_only=True)
class VolumeParameters:
    """A StorageClass, understood. ``features`` is librbd's bit mask, None for the cluster's default.

    ``pool`` may be "" where there are ``topology_pools``, one of which takes its place.
    """

    cluster_id: str
    pool: str
    data_pool: str = ""
    name_prefix: str = DEFAULT_NAME_PREFIX
    features: int | None = None
    striping: Striping = field(default_factory=Striping)
    owner: str = ""
    topology_pools: tuple[TopologyPool, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    passed_on: Mapping[str, str] = field(default_factory=dict)
    encryption: EncryptionParameters | None = None


def parse_parameters(parameters: Mapping[str, str]) -> VolumeParameters:
    """Return what a StorageClass asks for; raises InvalidArgument naming the parameter.

    ``passed_on`` is what the node gets to see in volume_context: everything but the pools of a topology and the
    provisioner's own ``csi.storage.k8s.io/`` keys.
    """
    _warn_of_unknown(parameters)
    cluster_id = _required(parameters, "clusterID")
    pools = parse_pools(parameters.get("topologyConstrainedPools", ""))
    pool = _required(parameters, "pool") if not pools or "pool" in parameters else ""
    for name in ("dataPool", "radosNamespace", "imageFeatures"):
        if parameters.get(name) == "":
            raise InvalidArgument(f"parameters[{name}]: expected a value, got an empty one; leave it out instead")
    mounter = parameters.get("mounter", "")
    if mounter and mounter not in MOUNTERS:
        raise InvalidArgument(f"parameters[mounter]: expected one of {', '.join(MOUNTERS)}, got {mounter!r}")
    # Nobody can change them later, so a volume that no node could stage is not made.
    wishes = MapWishes.of(parameters, where="parameters")
    parse_mkfs_options(parameters.get("mkfsOptions", ""), name="parameters[mkfsOptions]")
    _check_log(parameters)
    features, encryption = _features(parameters, mounter), _encryption(parameters)
    if encryption and not wishes.try_other_mounters:
        _check_luks(features, mounter)
    return VolumeParameters(
        cluster_id=cluster_id,
        pool=pool,
        topology_pools=pools,
        data_pool=parameters.get("dataPool", ""),
        name_prefix=parse_name_prefix(parameters, "volumeNamePrefix", DEFAULT_NAME_PREFIX),
        features=features,
        striping=_parse_striping(parameters),
        owner=parameters.get(OWNER_PARAMETER, ""),
        metadata={name: parameters[name] for name in METADATA_PARAMETERS if name in parameters},
        passed_on={
            name: value
            for name, value in parameters.items()
            if name not in _KEPT_BACK and not name.startswith(RESERVED_PREFIX)
        },
        encryption=encryption,
    )


def _required(parameters: Mapping[str, str], name: str) -> str:
    value = parameters.get(name, "")
    if not value:
        raise InvalidArgument(f"parameters[{name}]: required")
    return value


def parse_name_prefix(parameters: Mapping[str, str], name: str, default: str) -> str:
    """Return what images are called before their uuid; raises InvalidArgument naming the parameter."""
    prefix = parameters.get(name, default)
    if not prefix:
        raise InvalidArgument(f"parameters[{name}]: expected a value, got an empty one; leave it out instead")
    if len(prefix.encode()) > _MAX_PREFIX_BYTES:
        # An object's name has 2048 bytes at the most, and what librbd calls an image's is longer than the image's own.
        raise InvalidArgument(f"parameters[{name}]: expected at most {_MAX_PREFIX_BYTES} bytes, got more")
    if "/" in prefix or "@" in prefix:
        raise InvalidArgument(f"parameters[{name}]: an image name cannot have '/' or '@', got {prefix!r}")
    return prefix


def _features(parameters: Mapping[str, str], mounter: str) -> int | None:
    text = parameters.get("imageFeatures")
    return None if text is None else parse_features(text, mounter)


def _check_luks(features: int | None, mounter: str) -> None:
    """Refuse what librbd does not open, which does it for the mounter qemu."""
    if mounter == "qemu" and (features or 0) & Feature.JOURNALING:
        raise InvalidArgument(
            "parameters[imageFeatures]: expected no journaling: the mounter qemu cannot open an encrypted image with it"
        )


def _encryption(parameters: Mapping[str, str]) -> EncryptionParameters | None:
    return parse_encryption(parameters) if truth_of(parameters, "encrypted", where="parameters") else None


def _check_log(parameters: Mapping[str, str]) -> None:
    directory, strategy = parameters.get("cephLogDir"), parameters.get("cephLogStrategy")
    if directory is not None and not is_directory_name(directory):
        raise InvalidArgument(f"parameters[cephLogDir]: expected an absolute path, got {directory!r}")
    if strategy is not None and strategy not in STRATEGIES:
        raise InvalidArgument(f"parameters[cephLogStrategy]: expected one of {', '.join(STRATEGIES)}, got {strategy!r}")


def _warn_of_unknown(parameters: Mapping[str, str]) -> None:
    # ceph-csi ignores what it does not know, so a class that works there must work here; but a typo is worth a line.
    for name in parameters:
        if name in _KNOWN or name.startswith(RESERVED_PREFIX):
            continue
        near = get_close_matches(name, _KNOWN, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        log.warning(f"parameters[{name}] is unknown and has no effect{hint}")


def _parse_striping(parameters: Mapping[str, str]) -> Striping:
    object_bytes = _parse_positive(parameters, "objectSize")
    unit_bytes, count = _parse_positive(parameters, "stripeUnit"), _parse_positive(parameters, "stripeCount")
    order = None
    if object_bytes:
        order = object_bytes.bit_length() - 1
        if 1 << order != object_bytes or not _MIN_ORDER <= order <= _MAX_ORDER:
            raise InvalidArgument(
                f"parameters[objectSize]: expected a power of two from {1 << _MIN_ORDER} to {1 << _MAX_ORDER} bytes, "
                f"got {object_bytes}"
            )
    if bool(unit_bytes) != bool(count):
        missing = "stripeCount" if unit_bytes else "stripeUnit"
        raise InvalidArgument(f"parameters[{missing}]: required, since stripeUnit and stripeCount go together")
    whole = object_bytes or Striping.DEFAULT_OBJECT_BYTES
    if unit_bytes and whole % unit_bytes:
        raise InvalidArgument(
            f"parameters[stripeUnit]: expected a divisor of the object size ({whole} bytes), got {unit_bytes}"
        )
    return Striping(order=order, unit_bytes=unit_bytes, count=count)


def _parse_positive(parameters: Mapping[str, str], name: str) -> int:
    """Return a whole number above zero, 0 when the parameter is not given."""
    text = parameters.get(name)
    if text is None:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS and 0 < int(text) <= _MAX_NUMBER):
        raise InvalidArgument(f"parameters[{name}]: expected a whole number from 1 to {_MAX_NUMBER}, got {text[:40]!r}")
    return int(text)
