import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from csi_host.proto import csi_pb2, csi_pb2_grpc

PROGRAM = """
import sys, threading
from pathlib import Path
from csi_host import logs
from csi_host.driver import Driver
from csi_host.proto import csi_pb2
from csi_host.server.drain import serve_until_signal
from csi_host.server.endpoint import Endpoint
from csi_host.server.server import CsiServer
from csi_host.services.controller import ControllerServer
from csi_host.testing.contexts import host_context

directory, grace, close = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]

class Waiting(ControllerServer):
    def CreateVolume(self, request, context):
        return csi_pb2.CreateVolumeResponse(volume=csi_pb2.Volume(volume_id=request.name))

    def DeleteVolume(self, request, context):
        print("begun", flush=True)
        wait_in_the_backend(directory / request.volume_id)
        return csi_pb2.DeleteVolumeResponse()

def wait_in_the_backend(fifo):
    fifo.read_text()

def on_stopped():
    print("closed", flush=True)
    if close == "hangs":
        threading.Event().wait()
    if close == "fails":
        raise ValueError("cannot close")

logs.configure("info", sys.stderr)
server = CsiServer(
    driver=Driver(controller=Waiting(host_context(directory))), driver_name="a", vendor_version="1",
    endpoint=Endpoint.parse(f"unix://{directory}/csi.sock"), serves_controller=True, serves_node=False,
    has_topology=False, log_slow_interval=0,
)
def begin():
    server.start()
    print("listening", flush=True)

sys.exit(serve_until_signal(server, grace, on_stopped, begin))
"""


class Host:
    """The program in a process of its own; a DeleteVolume of it ends when its fifo is written to."""

    def __init__(self, directory: Path, process: "subprocess.Popen[str]", channel: grpc.Channel) -> None:
        self.directory = directory
        self.process = process
        self.printed = ""
        self._controller = csi_pb2_grpc.ControllerStub(channel)

    def expect(self, word: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == word

    def begin_call(self) -> Any:
        call = self._controller.DeleteVolume.future(csi_pb2.DeleteVolumeRequest(volume_id="fifo"))
        self.expect("begun")
        return call

    def finish_call(self) -> None:
        (self.directory / "fifo").write_text("go")

    def ended(self) -> tuple[int, list[dict[str, Any]]]:
        self.printed, errors = self.process.communicate(timeout=30)
        return self.process.returncode, [json.loads(line) for line in errors.splitlines()]


@contextmanager
def running(*, grace: float = 20, close: str = "works") -> Iterator[Host]:
    with tempfile.TemporaryDirectory(prefix="csi-") as name:
        directory = Path(name)
        subprocess.run(["mkfifo", str(directory / "fifo")], check=True)
        with (
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM, name, str(grace), close],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            ) as process,
            grpc.insecure_channel(f"unix:{directory}/csi.sock") as channel,
        ):
            try:
                host = Host(directory, process, channel)
                host.expect("listening")
                yield host
            finally:
                process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_host_ends_cleanly_and_leaves_no_socket(number: signal.Signals) -> None:
    with running() as host:
        host.process.send_signal(number)
        host.expect("closed")
        code, _ = host.ended()
        assert code == 0
        assert [path.name for path in host.directory.iterdir()] == ["fifo"]


def test_a_call_being_served_is_waited_for() -> None:
    with running() as host:
        call = host.begin_call()
        host.process.send_signal(signal.SIGTERM)
        # The socket is gone only when all calls have ended, so the call is answered while the host is stopping.
        host.finish_call()
        assert call.result(10) == csi_pb2.DeleteVolumeResponse()
        host.expect("closed")
        assert host.ended()[0] == 0


def test_a_hung_call_is_logged_with_its_stack_and_the_process_ends_with_3() -> None:
    with running(grace=0.3) as host:
        call = host.begin_call()
        host.process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError) as caught:
            call.result(20)
        assert caught.value.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
        code, lines = host.ended()
        # What the call still works with was not closed under it.
        assert host.printed == ""
    assert code == 3
    [line] = [line for line in lines if line["message"].startswith("unfinished at exit")]
    assert line["rpc"] == "DeleteVolume"
    assert line["age_seconds"] > 0.2
    assert "wait_in_the_backend" in line["stack"]


def test_a_second_signal_ends_the_process_at_once() -> None:
    with running(grace=300) as host:
        host.begin_call()
        host.process.send_signal(signal.SIGTERM)
        assert host.process.stderr is not None
        while "stopping" not in host.process.stderr.readline():
            assert host.process.poll() is None
        host.process.send_signal(signal.SIGTERM)
        assert host.process.wait(20) == 128 + signal.SIGTERM


def test_a_clean_up_that_fails_is_logged_and_does_not_stop_the_end() -> None:
    with running(close="fails") as host:
        host.process.send_signal(signal.SIGTERM)
        host.expect("closed")
        code, lines = host.ended()
    assert code == 0
    assert any("cannot close" in line.get("traceback", "") for line in lines)


def test_a_clean_up_that_hangs_is_given_up() -> None:
    with running(close="hangs") as host:
        host.process.send_signal(signal.SIGTERM)
        host.expect("closed")
        code, lines = host.ended()
    assert code == 3
    assert any("did not end within" in line["message"] for line in lines)
