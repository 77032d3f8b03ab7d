"""What an RBD image can be used for."""

from csi_host.access import VolumeAccess
from csi_host.errors import InvalidArgument


def check_use(use: VolumeAccess, field: str) -> None:
    """Raise InvalidArgument naming ``field`` for a use that an RBD image cannot serve."""
    # A filesystem on one image mounted for writing by two nodes is destroyed.
    if not use.is_block and use.mode.is_multi_node and not use.mode.is_reader_only:
        raise InvalidArgument(
            f"{field}.access_mode: multi node access modes are only supported on rbd block type volumes, got "
            f"{use.mode.name} with a filesystem"
        )
