from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from click.testing import Result
from google.protobuf.wrappers_pb2 import BoolValue

from csi_host.driver import Driver
from csi_host.proto import csi_pb2, csi_pb2_grpc
from csi_host.testing.server import serving

Invoke = Callable[..., Result]


def test_a_serving_host_is_ready_and_the_exit_code_is_0(invoke: Invoke) -> None:
    with serving(Driver()) as served:
        result = invoke(["probe", f"--endpoint=unix://{served.socket}"])
        assert (result.exit_code, result.stdout) == (0, "ready\n")
        assert invoke(["probe"], {"CSI_ENDPOINT": f"unix://{served.socket}"}).exit_code == 0


class AnotherServer(csi_pb2_grpc.IdentityServicer):
    """Somebody else's Identity service, which is ready or not, or does not say."""

    def __init__(self, *, is_ready: bool | None) -> None:
        self._is_ready = is_ready

    def Probe(self, request: csi_pb2.ProbeRequest, context: grpc.ServicerContext) -> csi_pb2.ProbeResponse:  # noqa: ARG002  the RPC's signature
        if self._is_ready is None:
            return csi_pb2.ProbeResponse()
        return csi_pb2.ProbeResponse(ready=BoolValue(value=self._is_ready))


@pytest.mark.parametrize(("is_ready", "exit_code"), [(True, 0), (None, 0), (False, 1)])
def test_only_an_explicit_no_means_not_ready(invoke: Invoke, *, is_ready: bool | None, exit_code: int) -> None:
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        csi_pb2_grpc.add_IdentityServicer_to_server(AnotherServer(is_ready=is_ready), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        result = invoke(["probe", "--endpoint", f"tcp://127.0.0.1:{port}"])
        server.stop(None).wait()
    assert result.exit_code == exit_code
    if exit_code:
        assert result.stderr == f"csi-host: tcp://127.0.0.1:{port}: the server answers that it is not ready\n"


def test_nobody_there_is_one_line_on_stderr_and_exit_code_1(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke(["probe", "--endpoint", f"unix://{tmp_path}/absent.sock", "--timeout", "500ms"])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"csi-host: unix://{tmp_path}/absent.sock: UNAVAILABLE: ")
    assert result.stderr.count("\n") == 1


def test_a_timeout_that_is_none_is_a_usage_error(invoke: Invoke) -> None:
    result = invoke(["probe", "--timeout=0s"])
    assert result.exit_code == 2
    assert "--timeout: expected more than 0" in result.output
