"""What a volume's context says of how its image is to become a device."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from csi_host.errors import InvalidArgument
from csi_host_rbd.attach.map_options import options_of
from csi_host_rbd.options import MOUNTERS
from csi_host_rbd.parameters import parse_bool


@dataclass(frozen=True, kw_only=True)
class MapWishes:
    """Options for mapping and unmapping by mounter, separated by commas, and whether another mounter will do."""

    map_options: Mapping[str, str] = field(default_factory=dict)
    unmap_options: Mapping[str, str] = field(default_factory=dict)
    try_other_mounters: bool = False

    @classmethod
    def of(cls, context: Mapping[str, str]) -> Self:
        """Read them; raises InvalidArgument naming the member that cannot be."""
        return cls(
            map_options=_by_mounter(context, "mapOptions"),
            unmap_options=_by_mounter(context, "unmapOptions"),
            try_other_mounters=_truth(context, "tryOtherMounters"),
        )


def _by_mounter(context: Mapping[str, str], field_name: str) -> dict[str, str]:
    return {mounter: options_of(context.get(field_name, ""), mounter, field_name) for mounter in MOUNTERS}


def _truth(context: Mapping[str, str], name: str) -> bool:
    try:
        return bool(context.get(name)) and parse_bool(name, context[name])
    except InvalidArgument:
        raise InvalidArgument(f"volume_context[{name}]: expected true or false, got {context[name]!r}") from None
