"""Names: which of them are CSI's."""

import re

from csi_host_rbd.reservations import GROUPS, SNAPSHOTS, VOLUMES, Kind

KINDS = (VOLUMES, SNAPSHOTS, GROUPS)
TEMPORARY_SUFFIX = "-temp"
LOCK_PREFIX = "csi.lock."
# Kubernetes' own driver named its images so; its volumes have no journal.
IN_TREE_PREFIX = "kubernetes-dynamic-pvc-"
DEFAULT_PREFIXES = (VOLUMES.image_prefix, SNAPSHOTS.image_prefix)

_UUID = r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
_WHOLE_UUID = re.compile(_UUID)
_ENDS_IN_UUID = re.compile(f".*?({_UUID})", re.DOTALL)
_VALUE = re.compile(f"(?:([0-9a-fA-F]{{16}})/)?({_UUID})")


def uuid_at_end(name: str) -> str:
    """Return the uuid that a name ends in, "" when there is none."""
    found = _ENDS_IN_UUID.fullmatch(name)
    return found.group(1) if found else ""


def volume_of_temporary(name: str) -> str:
    """Return the name of the volume's image when this is that of the one in between, else ""."""
    base = name.removesuffix(TEMPORARY_SUFFIX)
    return base if base != name and uuid_at_end(base) else ""


def is_csi_like(name: str) -> bool:
    """Whether an image of this name may be a volume's, a snapshot's, or one in between."""
    return bool(uuid_at_end(name) or volume_of_temporary(name))


def entry_of_object(name: str) -> tuple[Kind, str] | None:
    """Return the kind and the uuid of an object of the journal, None for any other object."""
    for kind in KINDS:
        uuid = name.removeprefix(kind.prefix)
        if uuid != name and _WHOLE_UUID.fullmatch(uuid):
            return kind, uuid
    return None


def kind_of_directory(name: str) -> Kind | None:
    """Return the kind whose directory an object is, of whatever instance."""
    return next((kind for kind in KINDS if name.startswith(kind.directory)), None)


def split_value(value: str) -> tuple[str, str]:
    """Return the pool's id ("" for the same pool) and the uuid that a value of a directory holds; "" for none."""
    found = _VALUE.fullmatch(value)
    return (found.group(1) or "", found.group(2)) if found else ("", "")
