"""Our csi.proto says what the specification's own says: compared with the one in the specification's Go module."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from shutil import which

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)
from google.protobuf.message import Message
from google.protobuf.text_format import MessageToString

from csi_host.process import run
from csi_host.proto import csi_pb2
from csi_host.proto.regenerate import PROTO, SOURCES, compile_proto

_SPEC = "github.com/container-storage-interface/spec@v1.12.0"

Facts = dict[str, str]


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> FileDescriptorProto:
    if which("go") is None:
        message = f"the comparison with {_SPEC} needs Go, which is not installed"
        if os.environ.get("CI") == "true":
            pytest.fail(f"{message}; it is never skipped in CI")
        pytest.skip(message)
    # The toolchain that is here will do: the module is only read, not built.
    downloaded = run(
        ["go", "mod", "download", "-json", _SPEC], timeout=120, environment={"GOTOOLCHAIN": "local", "GOFLAGS": ""}
    )
    directory = Path(json.loads(downloaded.stdout)["Dir"])
    return _compiled(directory, "csi.proto", tmp_path_factory.mktemp("official"))


@pytest.fixture
def ours(tmp_path: Path) -> FileDescriptorProto:
    # Compiled from the file: the descriptor in the generated module has lost its JSON names.
    return _compiled(SOURCES, PROTO, tmp_path)


def _compiled(root: Path, proto: str, directory: Path) -> FileDescriptorProto:
    compile_proto(root, proto, f"--descriptor_set_out={directory / 'csi.descriptors'}")
    (file,) = FileDescriptorSet.FromString((directory / "csi.descriptors").read_bytes()).file
    # Options are extensions, and are parsed as such only while the module that declares them is loaded.
    assert csi_pb2.DESCRIPTOR.extensions_by_name
    return file


def facts(file: FileDescriptorProto) -> Facts:
    """Everything that a descriptor says about the interface, by what it says it about; the order has no meaning."""
    return dict(
        [
            ("package", file.package),
            ("syntax", file.syntax),
            *_extension_facts(file.extension),
            *_message_facts("", file.message_type),
            *_enum_facts("", file.enum_type),
            *_service_facts(file.service),
        ]
    )


def _message_facts(prefix: str, messages: Iterable[DescriptorProto]) -> Iterator[tuple[str, str]]:
    for message in messages:
        name = f"{prefix}{message.name}"
        oneofs = [oneof.name for oneof in message.oneof_decl]
        yield f"message {name}", _options(message.options)
        yield f"reserved in {name}", f"{list(message.reserved_name)} {[str(r) for r in message.reserved_range]}"
        for field in message.field:
            oneof = oneofs[field.oneof_index] if field.HasField("oneof_index") else None
            yield f"field {name}.{field.name}", f"{_field(field)} in {oneof}"
        yield from _message_facts(f"{name}.", message.nested_type)
        yield from _enum_facts(f"{name}.", message.enum_type)
        yield from _extension_facts(message.extension)


def _field(field: FieldDescriptorProto) -> str:
    kind = f"{FieldDescriptorProto.Label.Name(field.label)} {FieldDescriptorProto.Type.Name(field.type)}"
    return (
        f"{field.number} {kind} {field.type_name} json {field.json_name} default {field.default_value!r} "
        f"optional {field.proto3_optional} options {_options(field.options)}"
    )


def _enum_facts(prefix: str, enums: Iterable[EnumDescriptorProto]) -> Iterator[tuple[str, str]]:
    for enum in enums:
        yield f"enum {prefix}{enum.name}", _options(enum.options)
        for value in enum.value:
            yield f"value {prefix}{enum.name}.{value.name}", f"{value.number} {_options(value.options)}"


def _extension_facts(extensions: Iterable[FieldDescriptorProto]) -> Iterator[tuple[str, str]]:
    for extension in extensions:
        yield f"extension {extension.name} of {extension.extendee}", _field(extension)


def _service_facts(services: Iterable[ServiceDescriptorProto]) -> Iterator[tuple[str, str]]:
    for service in services:
        yield f"service {service.name}", _options(service.options)
        for method in service.method:
            streams = f"streams {method.client_streaming} {method.server_streaming}"
            types = f"{method.input_type} -> {method.output_type}"
            yield f"rpc {service.name}.{method.name}", f"{types} {streams} {_options(method.options)}"


def _options(options: Message) -> str:
    return MessageToString(options, as_one_line=True, print_unknown_fields=True)


def test_our_descriptor_equals_the_official_one_field_by_field(
    ours: FileDescriptorProto, official: FileDescriptorProto
) -> None:
    assert facts(ours) == facts(official)


def test_both_read_the_options_and_do_not_just_pass_over_them(official: FileDescriptorProto) -> None:
    said = facts(official)
    assert "csi_secret]: true" in said["field CreateVolumeRequest.secrets"]
    assert "alpha_method]: true" in said["rpc Controller.GetSnapshot"]
    assert "streams False True" in said["rpc SnapshotMetadata.GetMetadataDelta"]
    assert len(said) > 300


def _message(file: FileDescriptorProto, name: str) -> DescriptorProto:
    return next(message for message in file.message_type if message.name == name)


def _drop_secret_mark(file: FileDescriptorProto) -> None:
    for field in _message(file, "DeleteVolumeRequest").field:
        field.ClearField("options")


def _renumber(file: FileDescriptorProto) -> None:
    _message(file, "Volume").field[0].number = 9


def _narrow(file: FileDescriptorProto) -> None:
    _message(file, "CapacityRange").field[0].type = FieldDescriptorProto.TYPE_INT32


def _leave_oneof(file: FileDescriptorProto) -> None:
    _message(file, "VolumeCapability").field[0].ClearField("oneof_index")


def _rename_enum_value(file: FileDescriptorProto) -> None:
    _message(file, "VolumeUsage").enum_type[0].value[1].name = "OCTETS"


def _stop_streaming(file: FileDescriptorProto) -> None:
    for service in file.service:
        for method in service.method:
            method.server_streaming = False


def _drop_alpha_of_service(file: FileDescriptorProto) -> None:
    for service in file.service:
        service.ClearField("options")


def _drop_message(file: FileDescriptorProto) -> None:
    file.message_type.remove(_message(file, "BlockMetadata"))


@pytest.mark.parametrize(
    "change",
    [
        _drop_secret_mark,
        _renumber,
        _narrow,
        _leave_oneof,
        _rename_enum_value,
        _stop_streaming,
        _drop_alpha_of_service,
        _drop_message,
    ],
)
def test_the_comparison_sees_a_difference_of_any_kind(
    ours: FileDescriptorProto, change: Callable[[FileDescriptorProto], None]
) -> None:
    before = facts(ours)
    change(ours)
    assert facts(ours) != before
