"""CSI messages for people: JSON or YAML to a request, an answer to JSON, a message's fields as text."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, cast

import yaml
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError, SerializeToJsonError
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from csi_host.proto import csi_pb2

_LONG = frozenset({FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64})
_LONG_WRAPPERS = frozenset({"google.protobuf.Int64Value", "google.protobuf.UInt64Value"})
_INDENT = "  "


class TextError(ValueError):
    """The text is not such a message; what is said about it never quotes a secret."""


def read_map(text: str, what: str) -> dict[str, Any]:
    """Return the JSON or YAML map in ``text``; raises TextError, naming ``what`` was read.

    No text at all is an empty map.
    """
    values = _read(text, what)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise TextError(f"{what}: expected a map, as in {{name: value}}, got {_kind(values)}")
    return values


def message_from(descriptor: Descriptor, values: dict[str, Any]) -> Message:
    """Return the message with these values; raises TextError for a field or value it cannot have."""
    _check(descriptor, values, "")
    try:
        return ParseDict(values, GetMessageClass(descriptor)())
    except ParseError as error:
        raise TextError(f"{descriptor.name}: {error}") from None


def json_values(message: Message) -> dict[str, Any]:
    """Return the message's fields, unset ones as well: enum values by name, 64-bit numbers as numbers.

    Raises TextError for a timestamp that no calendar has.
    """
    try:
        values = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    except SerializeToJsonError as error:
        raise TextError(f"{message.DESCRIPTOR.name}: {error}") from error
    return _with_numbers(cast("Descriptor", message.DESCRIPTOR), values)


def secret_field(descriptor: Descriptor) -> FieldDescriptor | None:
    """Return the message's field of secrets, None when it has none."""
    return next((field for field in descriptor.fields if _is_secret(field)), None)


def schema(descriptor: Descriptor) -> str:
    """Return the fields of a message and of those within it, one a line."""
    return "\n".join([descriptor.name, *_fields(descriptor, _INDENT)])


def _read(text: str, what: str) -> Any:
    # JSON first: it is not quite a part of YAML 1.1 (tabs, some escapes).
    try:
        return json.loads(text)
    except ValueError as error:
        not_json = error
    try:
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        if text.lstrip().startswith("{") and isinstance(not_json, json.JSONDecodeError):
            place = f"line {not_json.lineno}, column {not_json.colno}"
        else:
            place = f"line {error.problem_mark.line + 1}" if error.problem_mark else "somewhere"
        # PyYAML's own words quote the text, and the text may be a key.
        raise TextError(f"{what}: neither JSON nor YAML at {place}") from None
    except (yaml.YAMLError, ValueError):
        raise TextError(f"{what}: neither JSON nor YAML") from None


def _check(descriptor: Descriptor, values: Mapping[str, Any], path: str) -> None:
    by_name = {name: field for field in descriptor.fields for name in (field.name, field.json_name)}
    for name, value in values.items():
        field = by_name.get(name)
        if field is None:
            known = ", ".join(field.name for field in descriptor.fields) or "none"
            raise TextError(f"{path}{name}: no such field; the fields of {descriptor.name} are {known}")
        if _is_map(field):
            _check_string_map(value, f"{path}{name}")
        elif field.is_repeated and isinstance(value, list):
            for index, item in enumerate(value):
                _check_value(field, item, f"{path}{name}[{index}]")
        elif field.is_repeated and value is not None:
            raise TextError(f"{path}{name}: expected a list, got {_kind(value)}")
        else:
            _check_value(field, value, f"{path}{name}")


def _check_value(field: FieldDescriptor, value: Any, path: str) -> None:
    if field.message_type is not None and _is_ours(field.message_type) and value is not None:
        if not isinstance(value, dict):
            raise TextError(f"{path}: expected a map ({field.message_type.name}), got {_kind(value)}")
        _check(field.message_type, value, f"{path}.")
    elif field.enum_type is not None and isinstance(value, str) and value not in field.enum_type.values_by_name:
        raise TextError(f"{path}: expected one of {', '.join(_names(field.enum_type))}, got {value!r}")
    elif field.type == FieldDescriptor.TYPE_STRING and value is not None:
        _check_string(value, path)


def _check_string_map(value: Any, path: str) -> None:
    if value is None:
        return
    if not isinstance(value, dict):
        raise TextError(f"{path}: expected a map, got {_kind(value)}")
    for key, item in value.items():
        _check_string(key, f"{path}: a key")
        _check_string(item, f"{path}.{key}")


def _check_string(value: Any, path: str) -> None:
    if not isinstance(value, str):
        raise TextError(f"{path}: expected text, got {_kind(value)}; put it into quotes")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise TextError(f"{path}: expected text that UTF-8 can hold") from None


def _with_numbers(descriptor: Descriptor, values: dict[str, Any]) -> dict[str, Any]:
    # json_format writes 64-bit numbers as text, as JavaScript has none that long; people and jq do.
    return {name: _with_number(descriptor.fields_by_name[name], value) for name, value in values.items()}


def _with_number(field: FieldDescriptor, value: Any) -> Any:
    if _is_map(field):
        return value
    if isinstance(value, list):
        return [_plain(field, item) for item in value]
    return _plain(field, value)


def _plain(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is None:
        return int(value) if field.cpp_type in _LONG else value
    if field.message_type.full_name in _LONG_WRAPPERS:
        return int(value)
    return _with_numbers(field.message_type, value) if _is_ours(field.message_type) else value


def _fields(descriptor: Descriptor, indent: str) -> Iterator[str]:
    for field in descriptor.fields:
        yield f"{indent}{field.name}: {_type(field)}"
        if field.message_type is not None and _is_ours(field.message_type) and not _is_map(field):
            yield from _fields(field.message_type, indent + _INDENT)


def _type(field: FieldDescriptor) -> str:
    words = [f"list of {_type_name(field)}" if field.is_repeated and not _is_map(field) else _type_name(field)]
    if field.containing_oneof is not None:
        words.append(f"one of {field.containing_oneof.name}")
    if _is_secret(field):
        words.append("secret")
    if field.GetOptions().Extensions[csi_pb2.alpha_field]:
        words.append("alpha")
    return ", ".join(words)


def _type_name(field: FieldDescriptor) -> str:
    if _is_map(field):
        return "map of text to text"
    if field.enum_type is not None:
        return " | ".join(_names(field.enum_type))
    if field.message_type is not None:
        return field.message_type.name
    return _SCALARS[field.type]


_SCALARS = {
    FieldDescriptor.TYPE_STRING: "text",
    FieldDescriptor.TYPE_BOOL: "true | false",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_INT64: "int64",
}


def _names(enum: EnumDescriptor) -> list[str]:
    return [value.name for value in enum.values]


def _is_ours(descriptor: Descriptor) -> bool:
    # Those of google.protobuf (timestamps, wrappers) have JSON forms of their own.
    return descriptor.file.package == csi_pb2.DESCRIPTOR.package


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _is_secret(field: FieldDescriptor) -> bool:
    return bool(field.GetOptions().Extensions[csi_pb2.csi_secret])


def _kind(value: Any) -> str:
    kinds = {dict: "a map", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return kinds.get(type(value), "nothing" if value is None else f"a {type(value).__name__}")
