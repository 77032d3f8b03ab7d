import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message_factory import GetMessageClass

from csi_host import logs
from csi_host.process import REDACTED
from csi_host.proto import csi_pb2
from csi_host.request import Request, serving
from csi_host.services.secret_fields import TOKENS_KEY, secret_values

SECRET = "AQD-hunter2-secret=="


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    for handler in handlers:
        root.removeHandler(handler)
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)


def written(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def secret_fields() -> list[FieldDescriptor]:
    def all_types(types: Iterator[Descriptor]) -> Iterator[Descriptor]:
        for descriptor in types:
            yield descriptor
            yield from all_types(iter(descriptor.nested_types))

    return [
        field
        for descriptor in all_types(iter(csi_pb2.DESCRIPTOR.message_types_by_name.values()))
        for field in descriptor.fields
        if field.GetOptions().Extensions[csi_pb2.csi_secret]
    ]


def test_csi_1_12_has_nineteen_secret_fields() -> None:
    assert len(secret_fields()) == 19


@pytest.mark.parametrize("field", secret_fields(), ids=lambda field: field.full_name)
def test_every_secret_field_is_stripped(field: FieldDescriptor) -> None:
    assert field.containing_type is not None
    message = GetMessageClass(field.containing_type)()
    getattr(message, field.name)["userKey"] = SECRET
    text = logs.strip_secrets(message)
    assert SECRET not in text
    assert json.loads(text) == {field.name: REDACTED}
    assert secret_values(message) == [SECRET]
    assert getattr(message, field.name)["userKey"] == SECRET


def test_service_account_tokens_are_stripped_and_the_rest_of_the_context_is_not() -> None:
    tokens = json.dumps({"vault": {"token": "eyJ.part", "expirationTimestamp": "2030-01-01T00:00:00Z"}})
    message = csi_pb2.NodePublishVolumeRequest(volume_context={TOKENS_KEY: tokens, "pool": "rbd"})
    assert json.loads(logs.strip_secrets(message)) == {"volume_context": {TOKENS_KEY: REDACTED, "pool": "rbd"}}
    assert secret_values(message) == [tokens, "eyJ.part"]


def test_tokens_deep_inside_a_response_are_stripped_too() -> None:
    volume = csi_pb2.Volume(volume_id="v", volume_context={TOKENS_KEY: "not even json"})
    message = csi_pb2.ListVolumesResponse(entries=[csi_pb2.ListVolumesResponse.Entry(volume=volume)])
    text = logs.strip_secrets(message)
    assert "not even json" not in text
    assert json.loads(text)["entries"][0]["volume"]["volume_id"] == "v"
    assert secret_values(message) == ["not even json"]


def test_a_timestamp_outside_of_the_calendar_does_not_fail_the_log() -> None:
    message = csi_pb2.CreateSnapshotResponse()
    message.snapshot.creation_time.seconds = 2**62
    assert json.loads(logs.strip_secrets(message)) == {"unprintable": "csi.v1.CreateSnapshotResponse"}


@pytest.mark.parametrize(
    ("values", "text", "expected"),
    [
        ([SECRET], f"bad key {SECRET}!", f"bad key {REDACTED}!"),
        ([SECRET + "\n"], f"bad key {SECRET}!", f"bad key {REDACTED}!"),
        (["two\nlines"], "ValueError('two\\nlines')", f"ValueError('{REDACTED}')"),
        (["it's me"], """rbd --key 'it'"'"'s me'""", f"rbd --key '{REDACTED}'"),
        (["schlüssel"], 'json "schl\\u00fcssel"', f'json "{REDACTED}"'),
        (["abcd", "abcdefgh"], "abcdefgh", REDACTED),
        (["abc"], "abc abcd (abc)", f"{REDACTED} abcd ({REDACTED})"),
        (["", " "], "two words", "two words"),
        ([], "nothing to hide", "nothing to hide"),
        ([".*+(.*+("], "a.*+(.*+(b", f"a{REDACTED}b"),
        (["csi"], "image csi-vol-1 of csi", f"image csi-vol-1 of {REDACTED}"),
    ],
)
def test_secret_values_are_found_in_every_form_a_message_shows_them(
    values: list[str], text: str, expected: str
) -> None:
    assert logs.Scrubber(lambda: values)(text) == expected


def test_the_secret_values_are_asked_for_only_if_there_is_something_to_scrub() -> None:
    asked: list[int] = []

    def values() -> list[str]:
        asked.append(1)
        return [SECRET]

    scrub = logs.Scrubber(values)
    assert not asked
    assert scrub(SECRET) == scrub(SECRET) == REDACTED
    assert asked == [1]


def test_an_empty_message_is_an_empty_object() -> None:
    assert logs.strip_secrets(csi_pb2.ProbeRequest()) == "{}"


def test_a_line_is_json_with_what_was_given_as_extra(root: logging.Logger) -> None:
    stream = io.StringIO()
    logs.configure("info", stream)
    logging.getLogger("csi_host.test").info("mounted %s", "/a", extra={"volume_id": "v", "bytes": 5})
    logs.flush()
    [line] = written(stream)
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "info",
        "logger": "csi_host.test",
        "message": "mounted /a",
        "volume_id": "v",
        "bytes": 5,
    }
    assert root.level == logging.INFO


def test_a_line_names_the_call_that_it_belongs_to(root: logging.Logger) -> None:
    stream = io.StringIO()
    logs.configure("info", stream)
    with serving(Request(rpc="NodeStageVolume", request_id="req-1")):
        root.info("formatting")
    [line] = written(stream)
    assert (line["rpc"], line["request_id"]) == ("NodeStageVolume", "req-1")


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("error", ["error"]),
        ("warning", ["error", "warning"]),
        ("info", ["error", "warning", "info"]),
        ("debug", ["error", "warning", "info", "debug"]),
    ],
)
def test_a_level_shows_itself_and_what_is_worse(root: logging.Logger, level: str, expected: list[str]) -> None:
    stream = io.StringIO()
    logs.configure(level, stream)
    for name in ("error", "warning", "info", "debug"):
        getattr(root, name)("text")
    assert [line["level"] for line in written(stream)] == expected


def test_an_unknown_level_is_refused_naming_the_known_ones() -> None:
    with pytest.raises(ValueError, match="expected one of error, warning, info, debug"):
        logs.configure("loud", io.StringIO())


def test_configuring_again_replaces_what_was_there(root: logging.Logger) -> None:
    first, second = io.StringIO(), io.StringIO()
    logs.configure("info", first)
    logs.configure("info", second)
    root.info("once")
    assert first.getvalue() == ""
    assert len(written(second)) == 1


def test_whatever_is_logged_while_secrets_are_withheld_is_scrubbed(root: logging.Logger) -> None:
    stream = io.StringIO()
    logs.configure("info", stream)
    with logs.withholding(logs.Scrubber(lambda: [SECRET])):
        try:
            int(SECRET)
        except ValueError:
            root.exception("%s", SECRET, extra={"argv": ["rbd", f"--key={SECRET}"], "deep": {"a": (SECRET,)}})
    assert SECRET not in stream.getvalue()
    [line] = written(stream)
    assert line["argv"] == ["rbd", f"--key={REDACTED}"]
    assert line["traceback"].endswith(f"invalid literal for int() with base 10: '{REDACTED}'\n")


def test_a_message_can_hold_anything(root: logging.Logger) -> None:
    stream = io.StringIO()
    logs.configure("info", stream)
    root.info('a "quoted"\nline with ü', extra={"odd": {1, 2}})
    [line] = written(stream)
    assert line["message"] == 'a "quoted"\nline with ü'
    assert line["odd"] == "{1, 2}"
