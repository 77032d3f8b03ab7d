# ruff: noqa: ARG002 - an RPC's method has its arguments whether it looks at them or not
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import grpc
import pytest
import yaml
from click.testing import CliRunner, Result
from google.protobuf.timestamp_pb2 import Timestamp
from google.protobuf.wrappers_pb2 import BoolValue, Int64Value

from csi_host.cli.call import call
from csi_host.cli.message_text import message_from
from csi_host.cli.rpcs import all_rpcs, find_rpc
from csi_host.proto import csi_pb2, csi_pb2_grpc

KEY = "AQBUyVpmAAAAABAAkey0123456789abcdefghij=="
BLOCK_BYTES = 1 << 20


class Echo(csi_pb2_grpc.IdentityServicer, csi_pb2_grpc.ControllerServicer, csi_pb2_grpc.SnapshotMetadataServicer):
    """A small real server: it remembers what it was asked, and answers from it."""

    def __init__(self) -> None:
        self.created: list[csi_pb2.CreateVolumeRequest] = []
        self.gave_up = Event()

    def Probe(self, request: csi_pb2.ProbeRequest, context: grpc.ServicerContext) -> csi_pb2.ProbeResponse:
        return csi_pb2.ProbeResponse(ready=BoolValue(value=True))

    def CreateVolume(
        self, request: csi_pb2.CreateVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.CreateVolumeResponse:
        self.created.append(request)
        if not request.name:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"name: required; secrets {dict(request.secrets)}")
        size = request.capacity_range.required_bytes
        return csi_pb2.CreateVolumeResponse(volume=csi_pb2.Volume(volume_id=request.name, capacity_bytes=size))

    def DeleteVolume(
        self, request: csi_pb2.DeleteVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.DeleteVolumeResponse:
        context.add_callback(self.gave_up.set)
        self.gave_up.wait(30)
        return csi_pb2.DeleteVolumeResponse()

    def GetCapacity(
        self, request: csi_pb2.GetCapacityRequest, context: grpc.ServicerContext
    ) -> csi_pb2.GetCapacityResponse:
        return csi_pb2.GetCapacityResponse(
            available_capacity=1 << 60,
            maximum_volume_size=Int64Value(value=(1 << 53) + 1),
            minimum_volume_size=Int64Value(value=0),
        )

    def ListVolumes(
        self, request: csi_pb2.ListVolumesRequest, context: grpc.ServicerContext
    ) -> csi_pb2.ListVolumesResponse:
        entry = csi_pb2.ListVolumesResponse.Entry(volume=csi_pb2.Volume(volume_id="v" * 1000))
        return csi_pb2.ListVolumesResponse(entries=[entry] * 5000)

    def CreateSnapshot(
        self, request: csi_pb2.CreateSnapshotRequest, context: grpc.ServicerContext
    ) -> csi_pb2.CreateSnapshotResponse:
        seconds = -(10**15) if request.name == "before the calendar" else 86_400
        return csi_pb2.CreateSnapshotResponse(
            snapshot=csi_pb2.Snapshot(snapshot_id="ä", size_bytes=7, creation_time=Timestamp(seconds=seconds))
        )

    def GetMetadataAllocated(
        self, request: csi_pb2.GetMetadataAllocatedRequest, context: grpc.ServicerContext
    ) -> Iterator[csi_pb2.GetMetadataAllocatedResponse]:
        for number in range(3):
            block = csi_pb2.BlockMetadata(byte_offset=number * BLOCK_BYTES, size_bytes=BLOCK_BYTES)
            yield csi_pb2.GetMetadataAllocatedResponse(
                block_metadata_type=csi_pb2.FIXED_LENGTH, volume_capacity_bytes=1 << 40, block_metadata=[block]
            )
        if request.max_results == 1:
            context.abort(grpc.StatusCode.ABORTED, "broke off")


@dataclass(frozen=True, kw_only=True)
class Server:
    servicer: Echo
    endpoint: str

    def ask(self, *arguments: str, stdin: str = "") -> Result:
        return CliRunner().invoke(call, ["--endpoint", self.endpoint, *arguments], input=stdin)

    def answer(self, *arguments: str, stdin: str = "") -> object:
        result = self.ask(*arguments, stdin=stdin)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    servicer = Echo()
    with ThreadPoolExecutor(4) as pool:
        listening = grpc.server(pool)
        csi_pb2_grpc.add_IdentityServicer_to_server(servicer, listening)
        csi_pb2_grpc.add_ControllerServicer_to_server(servicer, listening)
        csi_pb2_grpc.add_SnapshotMetadataServicer_to_server(servicer, listening)
        endpoint = f"unix://{tmp_path}/csi.sock"
        listening.add_insecure_port(endpoint)
        listening.start()
        yield Server(servicer=servicer, endpoint=endpoint)
        listening.stop(0).wait()


@pytest.fixture
def secret_file(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        path = tmp_path / "secret.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_a_request_in_json_gets_an_answer_in_json_with_plain_numbers(server: Server) -> None:
    answer = server.answer("CreateVolume", '{"name": "v1", "capacity_range": {"required_bytes": 1073741824}}')
    assert answer == {
        "volume": {
            "capacity_bytes": 1073741824,
            "volume_id": "v1",
            "volume_context": {},
            "accessible_topology": [],
        }
    }


def test_a_request_in_yaml_is_the_same_request(server: Server) -> None:
    server.answer("CreateVolume", '{"name": "v1", "volume_capabilities": [{"mount": {}, "access_mode": {"mode": 1}}]}')
    server.answer(
        "CreateVolume",
        "name: v1\nvolume_capabilities:\n- mount: {}\n  access_mode: {mode: SINGLE_NODE_WRITER}\n",
    )
    first, second = server.servicer.created
    assert first == second
    assert first.volume_capabilities[0].HasField("mount")


def test_a_request_comes_from_a_file_or_from_standard_input(server: Server, tmp_path: Path) -> None:
    (tmp_path / "request.yaml").write_text("name: from-file", encoding="utf-8")
    server.answer("CreateVolume", "--file", str(tmp_path / "request.yaml"))
    server.answer("CreateVolume", "-f", "-", stdin='{"name": "from-stdin"}')
    server.answer("CreateVolume", "-", stdin="name: from-dash")
    assert [request.name for request in server.servicer.created] == ["from-file", "from-stdin", "from-dash"]


def test_a_request_given_twice_is_a_usage_error(server: Server, tmp_path: Path) -> None:
    (tmp_path / "request.yaml").write_text("name: v1", encoding="utf-8")
    result = server.ask("CreateVolume", "name: v2", "--file", str(tmp_path / "request.yaml"))
    assert result.exit_code == 2
    assert "not both" in result.stderr


@pytest.mark.parametrize("name", ["probe", "PROBE", "Identity/Probe", "identity/probe", "/csi.v1.Identity/Probe"])
def test_a_method_is_found_in_any_case_and_with_its_service(server: Server, name: str) -> None:
    assert server.answer(name) == {"ready": True}


@pytest.mark.parametrize("name", ["Prob", "robe", "Node/Probe", ""])
def test_an_unknown_method_is_a_usage_error_that_lists_what_there_is(server: Server, name: str) -> None:
    result = server.ask(name)
    assert result.exit_code == 2
    assert "Node: NodeStageVolume, NodeUnstageVolume" in result.stderr


def test_64_bit_numbers_are_exact_also_where_they_are_wrapped(server: Server) -> None:
    assert server.answer("GetCapacity") == {
        "available_capacity": 1 << 60,
        "maximum_volume_size": (1 << 53) + 1,
        "minimum_volume_size": 0,
    }


def test_a_time_is_shown_as_a_date_and_false_is_shown(server: Server) -> None:
    answer = server.answer("CreateSnapshot")
    assert isinstance(answer, dict)
    assert answer["snapshot"]["creation_time"] == "1970-01-02T00:00:00Z"
    assert answer["snapshot"]["ready_to_use"] is False


def test_an_answer_that_has_no_json_form_is_an_error_and_says_that_the_call_succeeded(server: Server) -> None:
    result = server.ask("CreateSnapshot", "name: before the calendar")
    assert result.exit_code == 1
    assert "CreateSnapshot succeeded, but its answer cannot be shown" in result.stderr


def test_a_stream_is_printed_one_answer_a_line(server: Server) -> None:
    result = server.ask("GetMetadataAllocated", "snapshot_id: s1")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["block_metadata"][0]["byte_offset"] for line in lines] == [0, BLOCK_BYTES, 2 * BLOCK_BYTES]
    assert {line["block_metadata_type"] for line in lines} == {"FIXED_LENGTH"}
    assert result.exit_code == 0


def test_a_stream_that_breaks_off_shows_what_came_and_fails(server: Server) -> None:
    result = server.ask("GetMetadataAllocated", "max_results: 1")
    assert len(result.stdout.splitlines()) == 3
    assert result.stderr == "GetMetadataAllocated failed: ABORTED: broke off\n"
    assert result.exit_code == 1


def test_a_failed_call_shows_its_code_and_message_and_no_secret(
    server: Server, secret_file: Callable[[str], str]
) -> None:
    result = server.ask("CreateVolume", "--secrets", secret_file(f"userKey: {KEY}"))
    assert result.exit_code == 1
    assert result.stderr.startswith("CreateVolume failed: INVALID_ARGUMENT: name: required; secrets {'userKey': ")
    assert KEY not in result.output
    assert server.servicer.created[0].secrets == {"userKey": KEY}


def test_a_method_the_server_does_not_have_fails_as_unimplemented(server: Server) -> None:
    result = server.ask("NodeGetInfo")
    assert result.exit_code == 1
    assert result.stderr.startswith("NodeGetInfo failed: UNIMPLEMENTED")


def test_an_endpoint_where_nobody_listens_fails_as_unavailable(tmp_path: Path) -> None:
    result = CliRunner().invoke(call, ["Probe"], env={"CSI_ENDPOINT": f"unix://{tmp_path}/none.sock"})
    assert result.exit_code == 1
    assert result.stderr.startswith("Probe failed: UNAVAILABLE")


def test_the_endpoint_may_come_from_the_environment(server: Server) -> None:
    result = CliRunner().invoke(call, ["Probe"], env={"CSI_ENDPOINT": server.endpoint})
    assert json.loads(result.stdout) == {"ready": True}


def test_a_call_that_takes_too_long_is_given_up(server: Server) -> None:
    result = server.ask("DeleteVolume", "volume_id: v1", "--timeout", "300ms")
    assert result.exit_code == 1
    assert result.stderr.startswith("DeleteVolume failed: DEADLINE_EXCEEDED")
    assert server.servicer.gave_up.wait(10), "the server never learnt that the caller had gone"


def test_an_answer_larger_than_grpcs_default_limit_arrives(server: Server) -> None:
    answer = server.answer("ListVolumes", "--timeout", "0")
    assert isinstance(answer, dict)
    assert len(answer["entries"]) == 5000


def test_secrets_go_into_the_request_from_a_file_in_json_as_well(
    server: Server, secret_file: Callable[[str], str]
) -> None:
    server.answer("CreateVolume", "name: v1", "--secrets", secret_file(json.dumps({"userID": "1", "userKey": KEY})))
    assert server.servicer.created[0].secrets == {"userID": "1", "userKey": KEY}


def test_secrets_for_a_request_that_takes_none_are_a_usage_error(
    server: Server, secret_file: Callable[[str], str]
) -> None:
    result = server.ask("Probe", "--secrets", secret_file(f"userKey: {KEY}"))
    assert result.exit_code == 2
    assert "Probe takes none" in result.stderr


def test_secrets_given_twice_are_a_usage_error(server: Server, secret_file: Callable[[str], str]) -> None:
    result = server.ask("CreateVolume", "{name: v1, secrets: {}}", "--secrets", secret_file(f"userKey: {KEY}"))
    assert result.exit_code == 2
    assert not server.servicer.created


@pytest.mark.parametrize(
    "text",
    [
        KEY,
        f"userKey: *{KEY}",
        f"userKey: [{KEY}",
        f"userKey: !{KEY} x",
        f'{{"userKey" "{KEY}"}}',
        f"userKey: {{inner: {KEY}}}",
        f"- {KEY}",
        f"userKey: &{KEY} [",
        f"userKey: \x00{KEY}",
        json.dumps({"userKey": KEY + "\ud800"}),
    ],
)
def test_a_secrets_file_that_cannot_be_read_is_a_usage_error_without_its_content(
    server: Server, secret_file: Callable[[str], str], text: str
) -> None:
    result = server.ask("CreateVolume", "name: v1", "--secrets", secret_file(text))
    assert result.exit_code == 2, result.output
    assert "secrets" in result.stderr
    assert KEY not in result.output
    assert KEY[:20] not in result.output


@pytest.mark.parametrize(
    ("method", "text", "complaint"),
    [
        (
            "CreateVolume",
            "{nme: v1}",
            "nme: no such field; the fields of CreateVolumeRequest are name, capacity_range,",
        ),
        ("CreateVolume", "{capacity_range: {req: 1}}", "capacity_range.req: no such field"),
        ("CreateVolume", "{volume_capabilities: [{mount: {}}, {mont: {}}]}", "volume_capabilities[1].mont: no such"),
        ("CreateVolume", "{volume_capabilities: {mount: {}}}", "volume_capabilities: expected a list, got a map"),
        (
            "CreateVolume",
            "{volume_capabilities: [{access_mode: {mode: WRITER}}]}",
            "volume_capabilities[0].access_mode.mode: expected one of UNKNOWN, SINGLE_NODE_WRITER,",
        ),
        ("CreateVolume", "{name: 12}", "name: expected text, got a number; put it into quotes"),
        ("CreateVolume", "{parameters: {yes: x}}", "parameters: a key: expected text, got true or false"),
        ("CreateVolume", "{parameters: {size: 2024-01-01}}", "parameters.size: expected text, got a date"),
        ("CreateVolume", "{parameters: [a]}", "parameters: expected a map, got a list"),
        ("CreateVolume", "{capacity_range: 5}", "capacity_range: expected a map (CapacityRange), got a number"),
        ("CreateVolume", "{capacity_range: {required_bytes: 1Gi}}", "required_bytes"),
        ("CreateVolume", "{capacity_range: {required_bytes: 9223372036854775808}}", "required_bytes"),
        ("CreateVolume", "[v1]", "request: expected a map"),
        ("CreateVolume", '{"name": }}', "request: neither JSON nor YAML at line 1, column 10"),
        ("CreateVolume", "name: 'v1", "request: neither JSON nor YAML at line"),
        ("Probe", "{ready: true}", "ready: no such field; the fields of ProbeRequest are none"),
    ],
)
def test_a_request_that_is_wrong_is_a_usage_error_naming_the_field(
    server: Server, method: str, text: str, complaint: str
) -> None:
    result = server.ask(method, text)
    assert result.exit_code == 2, result.output
    assert complaint in result.stderr
    assert not server.servicer.created


@pytest.mark.parametrize(
    "options", [("--endpoint", "http://x"), ("--timeout", "soon"), ("--timeout", "-1s"), ("--file", "/none/such")]
)
def test_an_option_that_is_wrong_is_a_usage_error(options: tuple[str, str]) -> None:
    result = CliRunner().invoke(call, ["Probe", *options])
    assert result.exit_code == 2
    assert options[0] in result.stderr


def test_without_a_method_the_error_says_how_to_find_one() -> None:
    result = CliRunner().invoke(call, [])
    assert result.exit_code == 2
    assert "--list" in result.stderr


def test_the_list_has_every_rpc_of_every_service() -> None:
    result = CliRunner().invoke(call, ["--list"])
    services = csi_pb2.DESCRIPTOR.services_by_name.values()
    expected = [f"{service.name}/{method.name}" for service in services for method in service.methods]
    assert [line.split()[0] for line in result.stdout.splitlines()] == expected
    assert len(expected) == 32
    assert "SnapshotMetadata/GetMetadataDelta (stream)" in result.stdout


@pytest.mark.parametrize("rpc", [rpc.name for rpc in all_rpcs()])
def test_the_schema_names_every_field_of_the_request_and_the_answer(rpc: str) -> None:
    result = CliRunner().invoke(call, [rpc, "--schema"])
    assert result.exit_code == 0
    for descriptor in (find_rpc(rpc).request, find_rpc(rpc).answer):
        for field in descriptor.fields:
            assert f"\n  {field.name}: " in result.stdout


def test_the_schema_says_what_a_field_may_hold() -> None:
    schema = CliRunner().invoke(call, ["CreateVolume", "--schema"]).stdout
    assert "\n    required_bytes: int64\n" in schema
    assert "\n  secrets: map of text to text, secret\n" in schema
    assert "\n    mount: MountVolume, one of access_type\n" in schema
    assert "\n      mode: UNKNOWN | SINGLE_NODE_WRITER | " in schema


def test_the_examples_in_the_help_are_requests_that_can_be_made() -> None:
    help_text = CliRunner().invoke(call, ["--help"]).stdout
    examples = [example.split("'")[0] for example in help_text.split(" '")[1:]]
    assert len(examples) == 2
    assert message_from(find_rpc("CreateVolume").request, yaml.safe_load(examples[0])).IsInitialized()
    assert message_from(find_rpc("DeleteVolume").request, yaml.safe_load(examples[1])).IsInitialized()


def test_the_installed_program_has_the_command(server: Server) -> None:
    program = Path(sys.executable).with_name("csi-host")
    command = [str(program), "call", "--endpoint", server.endpoint, "CreateSnapshot", "name: s"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(ended.stdout)["snapshot"]["snapshot_id"] == "ä"
    assert ended.stderr == ""
