"""Which fields of CSI's messages are secret: those marked ``csi_secret``, and service account tokens.

kubelet puts the tokens into ``volume_context``, which the spec does not mark (CVE-2023-2878, CVE-2024-3744).
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.json_format import MessageToDict, SerializeToJsonError
from google.protobuf.message import Message

from csi_host.process import REDACTED
from csi_host.proto import csi_pb2

TOKENS_KEY = "csi.storage.k8s.io/serviceAccount.tokens"


@dataclass(frozen=True, kw_only=True)
class _Plan:
    secret: tuple[FieldDescriptor, ...]
    string_maps: tuple[FieldDescriptor, ...]
    nested: tuple[FieldDescriptor, ...]


def stripped(message: Message) -> dict[str, Any]:
    """Return the message as JSON values, secrets replaced; fields have the names of the proto file."""
    try:
        values = MessageToDict(message, preserving_proto_field_name=True)
    except (SerializeToJsonError, ValueError):
        # A timestamp outside the calendar has no JSON form; the log line must not fail the call.
        return {"unprintable": message.DESCRIPTOR.full_name}
    _strip(values, cast("Descriptor", message.DESCRIPTOR))
    return values


def secret_values(message: Message) -> list[str]:
    """Return every secret text that the message carries."""
    return list(_values(message))


def _strip(values: dict[str, Any], descriptor: Descriptor) -> None:
    plan = _plan(descriptor)
    for field in plan.secret:
        if field.name in values:
            values[field.name] = REDACTED
    for field in plan.string_maps:
        if TOKENS_KEY in values.get(field.name, ()):
            values[field.name][TOKENS_KEY] = REDACTED
    for field in plan.nested:
        if field.name in values:
            inner = values[field.name]
            for value in inner if field.is_repeated else [inner]:
                _strip(value, _type_of(field))


def _values(message: Message) -> Iterator[str]:
    names = _names(message.DESCRIPTOR)
    for name in names.secret:
        yield from _texts(getattr(message, name))
    for name in names.string_maps:
        tokens = getattr(message, name).get(TOKENS_KEY, "")
        if tokens:
            yield tokens
            yield from _tokens_within(tokens)
    for name in names.repeated:
        for inner in getattr(message, name):
            yield from _values(inner)
    for name in names.single:
        if message.HasField(name):
            yield from _values(getattr(message, name))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, bytes):
        yield value.decode(errors="replace")
    elif hasattr(value, "values"):
        yield from value.values()
    else:
        for item in value:
            yield from _texts(item)


def _tokens_within(tokens: str) -> Iterator[str]:
    # {"<audience>": {"token": "...", "expirationTimestamp": "..."}}: a driver's message may show one token alone.
    try:
        audiences = json.loads(tokens)
    except ValueError:
        return
    if isinstance(audiences, dict):
        for entry in audiences.values():
            if isinstance(entry, dict) and isinstance(entry.get("token"), str):
                yield entry["token"]


@cache
def _plan(descriptor: Descriptor) -> _Plan:
    secret = tuple(field for field in descriptor.fields if _is_secret(field))
    open_fields = [field for field in descriptor.fields if field not in secret]
    return _Plan(
        secret=secret,
        string_maps=tuple(field for field in open_fields if _is_string_map(field)),
        nested=tuple(field for field in open_fields if _is_plain_message(field)),
    )


@dataclass(frozen=True, kw_only=True)
class _Names:
    """A plan's fields by name: asking the descriptors at each call would take longer than reading the fields."""

    secret: tuple[str, ...]
    string_maps: tuple[str, ...]
    repeated: tuple[str, ...]
    single: tuple[str, ...]


@cache
def _names(descriptor: Descriptor) -> _Names:
    plan = _plan(descriptor)
    return _Names(
        secret=tuple(field.name for field in plan.secret),
        string_maps=tuple(field.name for field in plan.string_maps),
        repeated=tuple(field.name for field in plan.nested if field.is_repeated),
        single=tuple(field.name for field in plan.nested if not field.is_repeated),
    )


def _is_secret(field: FieldDescriptor) -> bool:
    return bool(field.GetOptions().Extensions[csi_pb2.csi_secret])


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _is_string_map(field: FieldDescriptor) -> bool:
    return _is_map(field) and _type_of(field).fields_by_name["value"].type == FieldDescriptor.TYPE_STRING


def _is_plain_message(field: FieldDescriptor) -> bool:
    # Messages of google.protobuf (timestamps, wrappers) have JSON forms of their own, and no secrets.
    return field.message_type is not None and not _is_map(field) and field.message_type.file.package == "csi.v1"


def _type_of(field: FieldDescriptor) -> Descriptor:
    assert field.message_type is not None  # noqa: S101 - callers asked before; this tells the type checker
    return field.message_type
