"""How long a field may be and what may be in it (CSI spec, "Size Limits" and the fields' own words)."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from csi_host.capacity import CapacityRange
from csi_host.errors import InvalidArgument, OutOfRange
from csi_host.services.secret_fields import TOKENS_KEY

STRING_BYTES = 128
MAP_BYTES = 4096
NODE_ID_BYTES = 256
# A volume that Kubernetes migrated to CSI has an id with its pool's name in hex, which the general limit is too small
# for; the spec lets a plugin take more than it asks for.
VOLUME_ID_BYTES = 512
# Linux's PATH_MAX counts the closing NUL; NAME_MAX does not.
PATH_BYTES = 4095
PATH_COMPONENT_BYTES = 255

_PATHS = frozenset({"staging_target_path", "target_path", "volume_path"})
# Where the spec asks for an absolute path; elsewhere an unknown relative one has to be NOT_FOUND (csi-sanity).
_ABSOLUTE_IN = frozenset(
    {"NodeStageVolumeRequest", "NodeUnstageVolumeRequest", "NodePublishVolumeRequest", "NodeUnpublishVolumeRequest"}
)
# The characters the spec bans from names; no id or token has a use for them either.
_BANNED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")

Check = Callable[[Any, str], None]


def check_for(field: FieldDescriptor) -> Check | None:
    """Return the check of a field's value, which raises InvalidArgument or OutOfRange; None when anything goes."""
    if field.enum_type is not None:
        return _enum_check(field)
    if field.message_type is not None:
        return _check_map if field.message_type.GetOptions().map_entry else None
    if field.type == FieldDescriptor.TYPE_STRING:
        return _string_check(field)
    return _NUMBERS.get(field.name)


def _string_check(field: FieldDescriptor) -> Check | None:
    if field.name == "mount_flags":
        return None  # limited as a whole
    if field.name in _PATHS:
        message = field.containing_type
        return _check_absolute_path if message is not None and message.name in _ABSOLUTE_IN else _check_path
    if field.name == "node_id":
        return _check_node_id
    if field.name == "volume_id":
        return _check_volume_id
    return _each(_check_string) if field.is_repeated else _check_string


def check_capacity_range(capacity_range: Any, _path: str) -> None:
    """Raise InvalidArgument when no size can satisfy the range."""
    CapacityRange(required_bytes=capacity_range.required_bytes, limit_bytes=capacity_range.limit_bytes)


def check_mount_flags(mount: Any, path: str) -> None:
    """Raise InvalidArgument when the flags have more than 4 KiB together, or a character no flag has."""
    _check_total(sum(len(flag.encode()) for flag in mount.mount_flags), f"{path}.mount_flags")
    for index, flag in enumerate(mount.mount_flags):
        _check_characters(flag, f"{path}.mount_flags[{index}]")


def _check_string(value: str, path: str) -> None:
    _check_length(value, STRING_BYTES, path)
    _check_characters(value, path)


def _check_node_id(value: str, path: str) -> None:
    _check_length(value, NODE_ID_BYTES, path)
    _check_characters(value, path)


def _check_volume_id(value: str, path: str) -> None:
    _check_length(value, VOLUME_ID_BYTES, path)
    _check_characters(value, path)


def _check_path(value: str, path: str) -> None:
    _check_length(value, PATH_BYTES, path)
    _check_characters(value, path)
    if any(len(component.encode()) > PATH_COMPONENT_BYTES for component in value.split("/")):
        raise InvalidArgument(f"{path}: expected at most {PATH_COMPONENT_BYTES} bytes between two slashes")


def _check_absolute_path(value: str, path: str) -> None:
    _check_path(value, path)
    if value and not value.startswith("/"):
        raise InvalidArgument(f"{path}: expected an absolute path, got {value!r}")


def _check_map(value: Mapping[str, str], path: str) -> None:
    # Service account tokens, one of a kilobyte and more for each audience, are kubelet's addition to the map.
    size = sum(len(key.encode()) + len(text.encode()) for key, text in value.items() if key != TOKENS_KEY)
    _check_total(size, path)
    if any("\0" in key or "\0" in text for key, text in value.items()):
        raise InvalidArgument(f"{path}: expected keys and values without NUL characters")


def _check_total(size: int, path: str) -> None:
    if size > MAP_BYTES:
        raise InvalidArgument(f"{path}: expected at most {MAP_BYTES} bytes in all, got {size}")


def _check_length(value: str, limit: int, path: str) -> None:
    size = len(value.encode())
    if size > limit:
        raise InvalidArgument(f"{path}: expected at most {limit} bytes, got {size}")


def _check_characters(value: str, path: str) -> None:
    found = _BANNED.search(value)
    if found:
        raise InvalidArgument(f"{path}: expected no control characters, got U+{ord(found[0]):04X}")


def _check_count(value: int, path: str) -> None:
    if value < 0:
        raise InvalidArgument(f"{path}: expected 0 or more, got {value}")


def _check_offset(value: int, path: str) -> None:
    # OUT_OF_RANGE, not INVALID_ARGUMENT, is the spec's code for a negative offset (GetMetadataAllocated Errors).
    if value < 0:
        raise OutOfRange(f"{path}: expected 0 or more, got {value}")


def _enum_check(field: FieldDescriptor) -> Check:
    known = frozenset(field.enum_type.values_by_number) if field.enum_type is not None else frozenset()

    def check(value: int, path: str) -> None:
        if value not in known:
            raise InvalidArgument(f"{path}: expected a value of CSI 1.12, got {value}")

    return check


def _each(check: Callable[[str, str], None]) -> Check:
    def check_all(values: Sequence[str], path: str) -> None:
        for index, value in enumerate(values):
            check(value, f"{path}[{index}]")

    return check_all


_NUMBERS: Mapping[str, Check] = {
    "max_entries": _check_count,
    "max_results": _check_count,
    "starting_offset": _check_offset,
}
