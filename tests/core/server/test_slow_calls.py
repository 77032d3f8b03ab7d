import threading
import time
from typing import Any

import grpc
import pytest

from csi_host.driver import Driver, HostContext
from csi_host.proto import csi_pb2
from csi_host.services.controller import ControllerServer
from csi_host.testing.server import serving

SECRET = "AQBhunter2hunter2=="
DELETE = csi_pb2.DeleteVolumeRequest(volume_id="vol-1", secrets={"userKey": SECRET})


class Stuck(ControllerServer):
    """Hangs in DeleteVolume until it is let go."""

    def __init__(self, context: HostContext) -> None:
        super().__init__(context)
        self.begun, self.let_go = threading.Event(), threading.Event()

    def CreateVolume(
        self, request: csi_pb2.CreateVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.CreateVolumeResponse:
        del context
        return csi_pb2.CreateVolumeResponse(volume=csi_pb2.Volume(volume_id=request.name))

    def DeleteVolume(
        self, request: csi_pb2.DeleteVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.DeleteVolumeResponse:
        del context
        self._wait_for_the_backend(request.secrets["userKey"])
        return csi_pb2.DeleteVolumeResponse()

    def _wait_for_the_backend(self, key: str) -> None:
        assert key == SECRET  # a local variable that the stack must not show
        self.begun.set()
        self.let_go.wait(30)


def first_slow_line(log: Any) -> dict[str, Any]:
    deadline = time.monotonic() + 10
    while not log.lines("slow call"):
        assert time.monotonic() < deadline, "no slow call was logged"
        time.sleep(0.01)
    line: dict[str, Any] = log.lines("slow call")[0]
    return line


def test_a_slow_call_is_logged_with_where_it_is_and_nothing_of_its_values(context: HostContext, log: Any) -> None:
    stuck = Stuck(context)
    with serving(Driver(controller=stuck), log_slow_interval=0.05) as served:
        call = served.controller.DeleteVolume.future(DELETE, metadata=(("csi.requestid", "req-42"),))
        line = first_slow_line(log)
        stuck.let_go.set()
        call.result(10)
    assert (line["rpc"], line["request_id"], line["past_deadline"]) == ("DeleteVolume", "req-42", False)
    assert line["age_seconds"] >= 0.05
    assert "_wait_for_the_backend" in line["stack"]
    assert SECRET not in log.text()


def test_a_slow_call_whose_caller_has_given_up_is_said_to_be_late(context: HostContext, log: Any) -> None:
    stuck = Stuck(context)
    with serving(Driver(controller=stuck), log_slow_interval=0.3) as served:
        with pytest.raises(grpc.RpcError) as caught:
            served.controller.DeleteVolume(DELETE, timeout=0.1)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        line = first_slow_line(log)
        stuck.let_go.set()
    assert line["past_deadline"] is True


def test_an_interval_of_zero_turns_the_slow_call_log_off(context: HostContext) -> None:
    with serving(Driver(controller=Stuck(context)), log_slow_interval=0):
        assert "slow-calls" not in {thread.name for thread in threading.enumerate()}


def test_the_watching_ends_with_the_server(context: HostContext) -> None:
    with serving(Driver(controller=Stuck(context)), log_slow_interval=0.01):
        [watcher] = [thread for thread in threading.enumerate() if thread.name == "slow-calls"]
    watcher.join(10)
    assert not watcher.is_alive()
