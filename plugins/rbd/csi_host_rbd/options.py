"""The settings that only the rbd driver has."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from csi_host.driver import DriverOption, HostContext
from csi_host.durations import parse_duration

MOUNTERS = ("rbd", "rbd-nbd", "qemu")


def _parse_mounter(text: str) -> str:
    if text not in MOUNTERS:
        raise ValueError(f"expected one of {', '.join(MOUNTERS)}, got {text!r}")
    return text


OPTIONS = (
    DriverOption(
        name="cephcsiconfig",
        help="The JSON file that lists the Ceph clusters, as ceph-csi has it.",
        default=Path("/etc/ceph-csi-config/config.json"),
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
)


@dataclass(frozen=True, kw_only=True)
class RbdOptions:
    """The driver's settings, typed; times are in seconds."""

    clusters_file: Path
    ceph_conf: Path
    mounter: str
    qemu_directory: Path
    connect_timeout: float
    operation_timeout: float
    manager_timeout: float

    @classmethod
    def of(cls, context: HostContext) -> Self:
        """Read them out of what the host parsed."""
        options = context.options
        return cls(
            clusters_file=options["cephcsiconfig"],
            ceph_conf=options["cephconf"],
            mounter=options["mounter"],
            qemu_directory=options["qemudirectory"],
            connect_timeout=options["cephconnecttimeout"],
            operation_timeout=options["cephoptimeout"],
            manager_timeout=options["cephmgrtimeout"],
        )
