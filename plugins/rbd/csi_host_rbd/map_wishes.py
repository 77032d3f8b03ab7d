"""What a StorageClass, and so a volume's context, says of how an image is to become a device."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from csi_host_rbd.attach.map_options import options_of
from csi_host_rbd.attach.nbd_logs import DEFAULT_DIRECTORY, DEFAULT_STRATEGY
from csi_host_rbd.options import MOUNTERS
from csi_host_rbd.truth import truth_of

CONTEXT = "volume_context"


@dataclass(frozen=True, kw_only=True)
class MapWishes:
    """Options for mapping and unmapping by mounter, separated by commas, and whether another mounter will do.

    ``log_directory`` is where rbd-nbd is to write a log, "" for none, and ``log_strategy`` what becomes of that.
    """

    map_options: Mapping[str, str] = field(default_factory=dict)
    unmap_options: Mapping[str, str] = field(default_factory=dict)
    try_other_mounters: bool = False
    log_directory: str = ""
    log_strategy: str = ""

    @classmethod
    def of(cls, members: Mapping[str, str], *, where: str = CONTEXT) -> Self:
        """Read them; raises InvalidArgument naming the member, as ``<where>[<name>]``, that cannot be."""
        return cls(
            map_options=_by_mounter(members, "mapOptions", where),
            unmap_options=_by_mounter(members, "unmapOptions", where),
            try_other_mounters=truth_of(members, "tryOtherMounters", where=where),
            log_directory=members.get("cephLogDir", "") or (DEFAULT_DIRECTORY if "cephLogStrategy" in members else ""),
            log_strategy=members.get("cephLogStrategy", "") or DEFAULT_STRATEGY,
        )


def _by_mounter(members: Mapping[str, str], name: str, where: str) -> dict[str, str]:
    return {mounter: options_of(members.get(name, ""), mounter, name, where=where) for mounter in MOUNTERS}
