import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import grpc
import pytest
from click.testing import Result

from csi_host.proto import csi_pb2, csi_pb2_grpc
from csi_host.testing.distributions import write_distribution
from csi_host.testing.host_process import HostProcess, serving

Invoke = Callable[..., Result]
Start = Callable[..., AbstractContextManager[HostProcess]]


@pytest.fixture
def directory() -> Iterator[Path]:
    """Not pytest's own directory, which is often longer than a socket's path may be."""
    with tempfile.TemporaryDirectory(prefix="csi-") as name:
        yield Path(name)


@pytest.fixture
def start(place: Path, directory: Path) -> Start:
    """Run ``csi-host`` as a process, with what is installed in ``place``; every warning is an error."""

    def run(*arguments: str, **environment: str) -> AbstractContextManager[HostProcess]:
        return serving(
            arguments,
            socket=directory / "csi.sock",
            log_file=directory / "log",
            environment={"PYTHONPATH": str(place), "PYTHONWARNINGS": "error", **environment},
        )

    return run


def name_of(host: HostProcess) -> csi_pb2.GetPluginInfoResponse:
    with grpc.insecure_channel(host.endpoint) as channel:
        return csi_pb2_grpc.IdentityStub(channel).GetPluginInfo(csi_pb2.GetPluginInfoRequest(), timeout=10)


def messages(host: HostProcess) -> list[str]:
    return [json.loads(line)["message"] for line in host.log().splitlines() if line.startswith("{")]


def test_a_driver_is_served_under_its_own_name_and_put_away_at_the_end(start: Start, directory: Path) -> None:
    with start("--driver=toy", "--nodeid=node-a") as host:
        answer = name_of(host)
        assert (answer.name, answer.vendor_version) == ("toy.csi.example", "4.5")
        assert "serving toy.csi.example {}\n" in host.log()
    assert host.process.returncode == 0
    assert "the toy was put away\n" in host.log()
    assert not (directory / "csi.sock").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_either_signal_ends_it_with_0(start: Start, number: signal.Signals) -> None:
    with start("--driver=toy", "--nodeid=node-a") as host:
        host.process.send_signal(number)
        assert host.process.wait(30) == 0


def test_the_line_of_a_ceph_csi_manifest_starts_it_and_says_what_was_in_vain(start: Start) -> None:
    arguments = ["--type=toy", "--nodeserver=true", "--pidlimit=-1", "--v=5", "--drivername=my.csi.example"]
    with start(*arguments, "--csi-addons-endpoint=unix:///x", NODE_ID="node-b") as host:
        assert name_of(host).name == "my.csi.example"
        with grpc.insecure_channel(host.endpoint) as channel:
            info = csi_pb2_grpc.NodeStub(channel).NodeGetInfo(csi_pb2.NodeGetInfoRequest(), timeout=10)
        assert info.node_id == "node-b"
        said = messages(host)
    assert "--pidlimit has no effect in csi-host" in said
    assert "--csi-addons-endpoint has no effect in csi-host" in said
    (line,) = [each for each in said if "starts with" in each]
    for part in ("driver='toy'", "drivername='my.csi.example'", "nodeid='node-b'", "loglevel='debug'", "mood='happy'"):
        assert part in line


def test_the_nodes_labels_become_its_topology(start: Start, directory: Path) -> None:
    labels = directory / "labels"
    labels.write_text('kubernetes.io/os="linux"\nexample.com/zone="east-1"\n')
    with start(
        "--driver=toy", "--nodeid=node-a", "--domainlabels=example.com/zone", f"--nodelabelsfile={labels}"
    ) as host:
        with grpc.insecure_channel(host.endpoint) as channel:
            info = csi_pb2_grpc.NodeStub(channel).NodeGetInfo(csi_pb2.NodeGetInfoRequest(), timeout=10)
            answer = csi_pb2_grpc.IdentityStub(channel).GetPluginCapabilities(
                csi_pb2.GetPluginCapabilitiesRequest(), timeout=10
            )
        assert dict(info.accessible_topology.segments) == {"topology.toy.csi.example/zone": "east-1"}
        services = [each.service.type for each in answer.capabilities]
        assert csi_pb2.PluginCapability.Service.VOLUME_ACCESSIBILITY_CONSTRAINTS in services


def test_labels_of_the_environment_go_before_those_of_the_file(start: Start, directory: Path) -> None:
    labels = directory / "labels"
    labels.write_text('example.com/zone="of the file"\nexample.com/rack="r1"\n')
    wanted = "--domainlabels=example.com/zone,example.com/rack"
    given = {"CSI_HOST_NODELABELS": "example.com/zone=east-1,example.com/rack="}
    with start("--driver=toy", "--nodeid=a", wanted, f"--nodelabelsfile={labels}", **given) as host:
        with grpc.insecure_channel(host.endpoint) as channel:
            info = csi_pb2_grpc.NodeStub(channel).NodeGetInfo(csi_pb2.NodeGetInfoRequest(), timeout=10)
        segments = dict(info.accessible_topology.segments)
        assert segments == {"topology.toy.csi.example/zone": "east-1", "topology.toy.csi.example/rack": "r1"}


def test_a_broken_third_party_is_named_in_the_log_and_stops_nothing(start: Start, place: Path) -> None:
    write_distribution(place, "csi-bad", {"bad": "raise OSError('no backend')"})
    with start("--driver=toy", "--nodeid=node-a") as host:
        assert name_of(host).name == "toy.csi.example"
        assert "plugin 'bad' of csi-bad 1.0 is broken: OSError: no backend" in messages(host)


def failure(result: Result) -> str:
    """The last line on stderr: those before are the log."""
    assert result.exit_code == 1, result.output
    return result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("mood", "line"),
    [
        ("away", "csi-host: the toy box is locked"),
        ("broken", "csi-host: driver 'toy' cannot start: RuntimeError: two wheels are missing"),
        ("exits", "csi-host: driver 'toy' cannot start: SystemExit: 9"),
    ],
)
def test_a_driver_that_cannot_start_is_one_line_and_exit_code_1(invoke: Invoke, mood: str, line: str) -> None:
    result = invoke(["--driver=toy", "--nodeid=a", f"--mood={mood}"])
    assert failure(result) == line
    assert "Traceback" not in result.output


def test_an_endpoint_that_cannot_be_had_is_one_line_and_the_driver_is_put_away(invoke: Invoke) -> None:
    result = invoke(["--driver=toy", "--nodeid=a", "--endpoint=unix:///no/such/place/csi.sock"])
    assert failure(result).startswith("csi-host: socket path /no/such/place/csi.sock: the directory")
    assert "the toy was put away\n" in result.stdout


@pytest.mark.parametrize(
    ("labels", "line"),
    [
        (None, "--nodelabelsfile {file}: No such file or directory"),
        ('other/label="x"\n', "--domainlabels: domain labels: this node has no label example.com/zone"),
        ("junk\n", '--nodelabelsfile {file}: labels, line 1: expected key="value"'),
    ],
)
def test_a_node_whose_topology_cannot_be_told_does_not_start(
    invoke: Invoke, tmp_path: Path, labels: str | None, line: str
) -> None:
    file = tmp_path / "labels"
    if labels is not None:
        file.write_text(labels)
    result = invoke(["--driver=toy", "--nodeid=a", "--domainlabels=example.com/zone", f"--nodelabelsfile={file}"])
    assert failure(result) == f"csi-host: {line.format(file=file)}"


@pytest.mark.parametrize(
    ("arguments", "service"), [(["--controllerserver"], "Controller"), (["--mood=controller", "--nodeserver"], "Node")]
)
def test_a_mode_in_which_the_driver_has_nothing_to_serve_is_a_usage_error(
    invoke: Invoke, arguments: list[str], service: str
) -> None:
    result = invoke(["--driver=toy", "--nodeid=a", *arguments])
    assert result.exit_code == 2
    assert f"driver 'toy' has no {service} service" in result.stderr


def test_the_cephfs_stub_serves_a_node_and_claims_nothing_more(start: Start) -> None:
    with start("--type=cephfs", "--nodeid=node-a") as host, grpc.insecure_channel(host.endpoint) as channel:
        identity, node = csi_pb2_grpc.IdentityStub(channel), csi_pb2_grpc.NodeStub(channel)
        assert name_of(host).name == "cephfs.csi.ceph.com"
        assert identity.Probe(csi_pb2.ProbeRequest(), timeout=10).ready.value
        assert not identity.GetPluginCapabilities(csi_pb2.GetPluginCapabilitiesRequest(), timeout=10).capabilities
        info = node.NodeGetInfo(csi_pb2.NodeGetInfoRequest(), timeout=10)
        assert (info.node_id, info.HasField("accessible_topology")) == ("node-a", False)
        types = csi_pb2.NodeServiceCapability.RPC
        answer = node.NodeGetCapabilities(csi_pb2.NodeGetCapabilitiesRequest(), timeout=10)
        assert [each.rpc.type for each in answer.capabilities] == [types.GET_VOLUME_STATS, types.VOLUME_CONDITION]
        with pytest.raises(grpc.RpcError) as caught:
            csi_pb2_grpc.ControllerStub(channel).ControllerGetCapabilities(
                csi_pb2.ControllerGetCapabilitiesRequest(), timeout=10
            )
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_the_cephfs_stub_has_no_controller_to_serve() -> None:
    command = [str(Path(sys.executable).with_name("csi-host")), "--driver=cephfs", "--controllerserver"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "driver 'cephfs' has no Controller service, there would be nothing to serve" in done.stderr


def test_labels_that_cannot_be_read_are_named_where_nothing_but_the_driver_wants_them(
    invoke: Invoke, tmp_path: Path
) -> None:
    file = tmp_path / "labels"
    file.write_text("junk\n")
    result = invoke(["--driver=toy", "--nodeid=a", f"--nodelabelsfile={file}"])
    assert failure(result) == f'csi-host: --nodelabelsfile {file}: labels, line 1: expected key="value"'
