"""Hypothesis strategies that make any message of the CSI spec, junk and near-valid values mixed."""

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

_INTEGERS = {FieldDescriptor.CPPTYPE_INT32: 31, FieldDescriptor.CPPTYPE_INT64: 63}


def requests(
    descriptor: Descriptor,
    *,
    texts: Sequence[str] = (),
    maps: Mapping[str, Sequence[Mapping[str, str]]] | None = None,
    seeds: Sequence[Message] = (),
) -> st.SearchStrategy[Message]:
    """Return a strategy for messages of ``descriptor``: whole junk, and ``seeds`` with up to two fields changed.

    ``texts`` are values that mean something to the driver (a real volume id, an existing path) and are tried beside
    junk in every string; ``maps`` are whole values for the map fields of the given name (``secrets``, ``parameters``).
    """
    text = st.one_of(st.sampled_from([*texts, "", "-", "a" * 128, "a" * 129, "a\x00b", "\u2028", "../../etc"]), _junk())
    junk = _message(descriptor, text, maps or {})
    return st.one_of(junk, _changed(seeds, descriptor, text, maps or {})) if seeds else junk


def _changed(
    seeds: Sequence[Message],
    descriptor: Descriptor,
    text: st.SearchStrategy[str],
    maps: Mapping[str, Sequence[Mapping[str, str]]],
) -> st.SearchStrategy[Message]:
    fields = {field.name: _field(field, text, maps) for field in descriptor.fields}

    @st.composite
    def change(draw: st.DrawFn) -> Message:
        message = GetMessageClass(descriptor)()
        message.CopyFrom(draw(st.sampled_from(seeds)))
        for name in draw(st.lists(st.sampled_from(sorted(fields)), max_size=2, unique=True)):
            message.ClearField(name)
            message.MergeFrom(GetMessageClass(descriptor)(**{name: draw(fields[name])}))
        return message

    return change()


def _junk() -> st.SearchStrategy[str]:
    # gRPC carries UTF-8 only, so no lone surrogates; and a path outside of what a test gives could be a real one.
    return st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/"), max_size=200)


def _message(
    descriptor: Descriptor, text: st.SearchStrategy[str], maps: Mapping[str, Sequence[Mapping[str, str]]]
) -> st.SearchStrategy[Message]:
    message_class = GetMessageClass(descriptor)
    fields = {field.name: _field(field, text, maps) for field in descriptor.fields}
    values = st.fixed_dictionaries({}, optional=fields)
    return values.map(lambda chosen: message_class(**_one_of_each(chosen, descriptor)))


def _one_of_each(values: dict[str, Any], descriptor: Descriptor) -> dict[str, Any]:
    """Keep one member of every oneof, since setting a second one would clear the first."""
    for oneof in descriptor.oneofs:
        for superfluous in [field.name for field in oneof.fields if field.name in values][1:]:
            del values[superfluous]
    return values


def _field(
    field: FieldDescriptor, text: st.SearchStrategy[str], maps: Mapping[str, Sequence[Mapping[str, str]]]
) -> st.SearchStrategy[Any]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        junk = st.dictionaries(text, text, max_size=4)
        known = maps.get(field.name)
        return st.one_of(st.sampled_from([dict(one) for one in known]), junk) if known else junk
    value = _value(field, text, maps)
    return st.lists(value, max_size=3) if field.is_repeated else value


def _value(
    field: FieldDescriptor, text: st.SearchStrategy[str], maps: Mapping[str, Sequence[Mapping[str, str]]]
) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        return _message(field.message_type, text, maps)
    if field.enum_type is not None:
        return st.one_of(st.sampled_from([value.number for value in field.enum_type.values]), st.integers(0, 99))
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if field.cpp_type in _INTEGERS:
        bits = _INTEGERS[field.cpp_type]
        return st.one_of(st.sampled_from([0, 1, -1, 2**bits - 1, -(2**bits)]), st.integers(-(2**bits), 2**bits - 1))
    return text
