"""How a volume is used: CSI's access modes and types as domain values, free of protobuf."""

from dataclasses import dataclass
from enum import IntEnum


class AccessMode(IntEnum):
    """VolumeCapability.AccessMode.Mode; the numbers are the spec's."""

    UNKNOWN = 0
    SINGLE_NODE_WRITER = 1
    SINGLE_NODE_READER_ONLY = 2
    MULTI_NODE_READER_ONLY = 3
    MULTI_NODE_SINGLE_WRITER = 4
    MULTI_NODE_MULTI_WRITER = 5
    SINGLE_NODE_SINGLE_WRITER = 6
    SINGLE_NODE_MULTI_WRITER = 7

    @property
    def is_reader_only(self) -> bool:
        """Whether nobody may write."""
        return self in {AccessMode.SINGLE_NODE_READER_ONLY, AccessMode.MULTI_NODE_READER_ONLY}

    @property
    def is_multi_node(self) -> bool:
        """Whether several nodes may have the volume at once."""
        return self in {
            AccessMode.MULTI_NODE_READER_ONLY,
            AccessMode.MULTI_NODE_SINGLE_WRITER,
            AccessMode.MULTI_NODE_MULTI_WRITER,
        }


@dataclass(frozen=True, kw_only=True)
class VolumeAccess:
    """One VolumeCapability: a raw block device, or a filesystem with its type and mount flags.

    Mount flags are whole words, never split at commas: kubelet sends ``context="…:s0:c1,c2"`` as one flag.
    """

    mode: AccessMode
    is_block: bool
    fs_type: str = ""
    mount_flags: tuple[str, ...] = ()
    volume_mount_group: str = ""
