"""The settings that only the rbd driver has."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from csi_host.driver import DriverOption, HostContext
from csi_host.durations import parse_duration
from csi_host.setting_values import parse_boolean
from csi_host_rbd.limits import Limits

_MAX_DEPTH = 14
_MAX_SNAPSHOTS = 500
MOUNTERS = ("rbd", "rbd-nbd", "qemu")
LOCK_BACKENDS = ("memory", "rados")
# Shorter ones are lost by a busy machine, longer ones are a day of waiting for a dead controller.
_SHORTEST_LEASE_SECONDS = 1.0
_LONGEST_LEASE_SECONDS = 3600.0


def _parse_mounter(text: str) -> str:
    if text not in MOUNTERS:
        raise ValueError(f"expected one of {', '.join(MOUNTERS)}, got {text!r}")
    return text


def _parse_lock_backend(text: str) -> str:
    if text not in LOCK_BACKENDS:
        raise ValueError(f"expected one of {', '.join(LOCK_BACKENDS)}, got {text!r}")
    return text


def _parse_lock_lease(text: str) -> float:
    seconds = parse_duration(text)
    if not _SHORTEST_LEASE_SECONDS <= seconds <= _LONGEST_LEASE_SECONDS:
        raise ValueError(
            f"expected a duration from {_SHORTEST_LEASE_SECONDS:g} to {_LONGEST_LEASE_SECONDS:g} seconds, got {text!r}"
        )
    return seconds


def _parse_depth(text: str) -> int:
    return _parse_number(text, _MAX_DEPTH)


def _parse_snapshots(text: str) -> int:
    return _parse_number(text, _MAX_SNAPSHOTS)


def _parse_number(text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= most):
        raise ValueError(f"expected a whole number from 1 to {most}, got {text!r}")
    return int(text)


def _words(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (word.strip() for word in text.split(","))))


OPTIONS = (
    DriverOption(
        name="cephcsiconfig",
        help="The JSON file that lists the Ceph clusters, as ceph-csi has it.",
        default=Path("/etc/ceph-csi-config/config.json"),
        parse=Path,
        metavar="FILE",
    ),
    DriverOption(
        name="controllersecret",
        help="A mounted Secret, or a JSON or YAML file, with userID and userKey for the calls that bring no secret.",
        default=None,
        parse=Path,
        metavar="PATH",
    ),
    DriverOption(
        name="clustermapping",
        help="The JSON file that pairs the cluster and pool ids of two sites, as ceph-csi has it; need not exist.",
        default=Path("/etc/ceph-csi-config/cluster-mapping.json"),
        parse=Path,
        metavar="FILE",
    ),
    DriverOption(
        name="cephconf",
        help="A ceph.conf that librados reads when it exists; monitors and keys never come from it.",
        default=Path("/etc/ceph/ceph.conf"),
        parse=Path,
        metavar="FILE",
    ),
    DriverOption(
        name="kmsconfig",
        help="The JSON file with the key management systems of encrypted volumes, as ceph-csi has it.",
        default=Path("/etc/ceph-csi-encryption-kms-config/config.json"),
        parse=Path,
        metavar="FILE",
    ),
    DriverOption(
        name="mounter",
        help="How an image becomes a block device where the StorageClass names no mounter: rbd, rbd-nbd or qemu.",
        default="rbd",
        parse=_parse_mounter,
        metavar="NAME",
    ),
    DriverOption(
        name="qemudirectory",
        help="Where the qemu mounter keeps the sockets and export files of attached images.",
        default=Path("/run/csi-host/qemu"),
        parse=Path,
        metavar="DIRECTORY",
    ),
    DriverOption(
        name="enable-read-affinity",
        help="Read from the nearest OSDs, in clusters with readAffinity that name no labels of their own.",
        default=False,
        parse=parse_boolean,
    ),
    DriverOption(
        name="crush-location-labels",
        help="The node's labels that are its CRUSH location, separated by commas (see also --nodelabels).",
        default="",
        metavar="LABELS",
    ),
    DriverOption(
        name="cephconnecttimeout",
        help="How long connecting to a Ceph cluster may take.",
        default=15.0,
        parse=parse_duration,
        metavar="DURATION",
    ),
    DriverOption(
        name="cephoptimeout",
        help="How long one operation of a monitor or OSD may take before the call ends with DEADLINE_EXCEEDED.",
        default=30.0,
        parse=parse_duration,
        metavar="DURATION",
    ),
    DriverOption(
        name="cephmgrtimeout",
        help="How long the manager may take to accept a task.",
        default=15.0,
        parse=parse_duration,
        metavar="DURATION",
    ),
    DriverOption(
        name="lockbackend",
        help="Where the controller's locks are: memory (one active controller) or also rados (several at once).",
        default="memory",
        parse=_parse_lock_backend,
        metavar="NAME",
    ),
    DriverOption(
        name="locklease",
        help="How long after a controller's death another one can break its locks, with the rados backend.",
        default=30.0,
        parse=_parse_lock_lease,
        metavar="DURATION",
    ),
    DriverOption(
        name="rbdhardmaxclonedepth",
        help="How many images a clone may hang on, one after the other, before nothing is made of it until it is flat.",
        default=8,
        parse=_parse_depth,
        metavar="NUMBER",
    ),
    DriverOption(
        name="rbdsoftmaxclonedepth",
        help="From which depth on a chain of clones is flattened beside other work.",
        default=4,
        parse=_parse_depth,
        metavar="NUMBER",
    ),
    DriverOption(
        name="maxsnapshotsonimage",
        help="How many snapshots an image may have before no more are taken until its clones are flattened.",
        default=450,
        parse=_parse_snapshots,
        metavar="NUMBER",
    ),
    DriverOption(
        name="minsnapshotsonimage",
        help="From how many snapshots of an image on its clones are flattened beside other work.",
        default=250,
        parse=_parse_snapshots,
        metavar="NUMBER",
    ),
)


@dataclass(frozen=True, kw_only=True)
class RbdOptions:
    """The driver's settings, typed; times are in seconds."""

    clusters_file: Path
    controller_secret: Path | None
    mapping_file: Path
    kms_file: Path
    ceph_conf: Path
    mounter: str
    qemu_directory: Path
    has_read_affinity: bool
    crush_location_labels: tuple[str, ...]
    connect_timeout: float
    operation_timeout: float
    manager_timeout: float
    lock_backend: str
    lock_lease: float
    limits: Limits

    @classmethod
    def of(cls, context: HostContext) -> Self:
        """Read them out of what the host parsed."""
        options = context.options
        return cls(
            clusters_file=options["cephcsiconfig"],
            controller_secret=options["controllersecret"],
            mapping_file=options["clustermapping"],
            kms_file=options["kmsconfig"],
            ceph_conf=options["cephconf"],
            mounter=options["mounter"],
            qemu_directory=options["qemudirectory"],
            has_read_affinity=options["enable-read-affinity"],
            crush_location_labels=_words(options["crush-location-labels"]),
            connect_timeout=options["cephconnecttimeout"],
            operation_timeout=options["cephoptimeout"],
            manager_timeout=options["cephmgrtimeout"],
            lock_backend=options["lockbackend"],
            lock_lease=options["locklease"],
            limits=Limits(
                hard_depth=options["rbdhardmaxclonedepth"],
                soft_depth=options["rbdsoftmaxclonedepth"],
                max_snapshots=options["maxsnapshotsonimage"],
                min_snapshots=options["minsnapshotsonimage"],
            ),
        )
