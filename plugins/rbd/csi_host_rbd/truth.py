"""The truth of what a StorageClass or a volume's context says."""

from collections.abc import Mapping

from csi_host.errors import InvalidArgument
from csi_host.setting_values import parse_boolean


def truth_of(members: Mapping[str, str], name: str, *, where: str) -> bool:
    """Return the truth of the member ``name``, in the spellings ceph-csi takes; False when it is missing or empty.

    Raises InvalidArgument naming it as ``<where>[<name>]``.
    """
    text = members.get(name)
    if not text:
        return False
    try:
        return parse_boolean(text)
    except ValueError as reason:
        raise InvalidArgument(f"{where}[{name}]: {reason}") from None
