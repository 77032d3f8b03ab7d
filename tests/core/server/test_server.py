import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from csi_host.driver import Driver, HostContext
from csi_host.proto import csi_pb2, csi_pb2_grpc
from csi_host.server.endpoint import Endpoint, EndpointError
from csi_host.server.server import CsiServer
from csi_host.services.controller import ControllerServer
from csi_host.services.node import NodeServer
from csi_host.testing.server import serving

DELETE = csi_pb2.DeleteVolumeRequest(volume_id="vol-1")


class Stuck(ControllerServer):
    """Hangs in DeleteVolume until it is let go; ``begun`` counts the calls that hang."""

    def __init__(self, context: HostContext) -> None:
        super().__init__(context)
        self.begun, self.let_go = threading.Semaphore(0), threading.Event()

    def CreateVolume(
        self, request: csi_pb2.CreateVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.CreateVolumeResponse:
        del context
        return csi_pb2.CreateVolumeResponse(volume=csi_pb2.Volume(volume_id=request.name))

    def DeleteVolume(
        self, request: csi_pb2.DeleteVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.DeleteVolumeResponse:
        del request, context
        self.begun.release()
        self.let_go.wait(30)
        return csi_pb2.DeleteVolumeResponse()


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="csi-") as directory:
        yield Path(directory)


def server_at(endpoint: str, driver: Driver, **options: Any) -> CsiServer:
    return CsiServer(
        driver=driver,
        driver_name="test.csi.example",
        vendor_version="1",
        endpoint=Endpoint.parse(endpoint),
        serves_controller=True,
        serves_node=True,
        has_topology=False,
        log_slow_interval=0,
        **options,
    )


def probe(target: str) -> csi_pb2.ProbeResponse:
    with grpc.insecure_channel(target) as channel:
        return csi_pb2_grpc.IdentityStub(channel).Probe(csi_pb2.ProbeRequest(), timeout=10)


def test_probe_and_capabilities_answer_at_once_while_every_worker_is_stuck(context: HostContext) -> None:
    stuck = Stuck(context)
    with serving(Driver(controller=stuck, node=NodeServer(context)), workers=4) as served:
        calls = [served.controller.DeleteVolume.future(DELETE) for _ in range(8)]
        for _ in range(4):
            assert stuck.begun.acquire(timeout=10)
        served.identity.Probe(csi_pb2.ProbeRequest(), timeout=10)  # the connection is warm from here on
        slowest = 0.0
        for _ in range(5):
            begun = time.monotonic()
            assert served.identity.Probe(csi_pb2.ProbeRequest(), timeout=10).ready.value
            slowest = max(slowest, time.monotonic() - begun)
        served.controller.ControllerGetCapabilities(csi_pb2.ControllerGetCapabilitiesRequest(), timeout=10)
        served.node.NodeGetCapabilities(csi_pb2.NodeGetCapabilitiesRequest(), timeout=10)
        served.node.NodeGetInfo(csi_pb2.NodeGetInfoRequest(), timeout=10)
        assert not stuck.begun.acquire(blocking=False), "more calls than workers were begun"
        stuck.let_go.set()
        for call in calls:
            call.result(10)
    assert slowest < 0.1


def test_probe_answers_while_a_drivers_own_node_info_is_stuck(context: HostContext) -> None:
    begun, let_go = threading.Semaphore(0), threading.Event()

    class Asking(NodeServer):
        def NodeGetInfo(
            self, request: csi_pb2.NodeGetInfoRequest, context: grpc.ServicerContext
        ) -> csi_pb2.NodeGetInfoResponse:
            begun.release()
            let_go.wait(30)
            return super().NodeGetInfo(request, context)

    with serving(Driver(node=Asking(context))) as served:
        calls = [served.node.NodeGetInfo.future(csi_pb2.NodeGetInfoRequest()) for _ in range(4)]
        for _ in range(4):
            assert begun.acquire(timeout=10)
        assert served.identity.Probe(csi_pb2.ProbeRequest(), timeout=10).ready.value
        let_go.set()
        for call in calls:
            assert call.result(10).node_id == "node-a"


def test_the_socket_is_its_owners_only_and_gone_after_a_stop(directory: Path, context: HostContext) -> None:
    server = server_at(f"unix://{directory}/csi.sock", Driver(node=NodeServer(context)))
    server.start()
    assert stat.S_IMODE((directory / "csi.sock").stat().st_mode) == 0o600
    assert probe(server.address).ready.value
    assert server.stop(5) == []
    assert list(directory.iterdir()) == []


def test_a_second_server_does_not_steal_the_socket(directory: Path, context: HostContext) -> None:
    driver = Driver(node=NodeServer(context))
    first, second = (server_at(f"unix://{directory}/csi.sock", driver) for _ in range(2))
    first.start()
    inode = (directory / "csi.sock").stat().st_ino
    with pytest.raises(EndpointError, match="another server owns it"):
        second.start()
    second.stop(0)
    assert (directory / "csi.sock").stat().st_ino == inode
    assert probe(first.address).ready.value
    first.stop(5)
    third = server_at(f"unix://{directory}/csi.sock", driver)
    third.start()
    assert probe(third.address).ready.value
    third.stop(5)


def test_a_server_that_stops_leaves_its_successors_socket_alone(directory: Path, context: HostContext) -> None:
    driver = Driver(node=NodeServer(context))
    path = directory / "csi.sock"
    first = server_at(f"unix://{path}", driver)
    first.start()
    # A program that knows nothing of the lock does what grpcio does: removes the path and binds it anew.
    path.unlink()
    (directory / "csi.sock.lock").unlink()
    second = server_at(f"unix://{path}", driver)
    second.start()
    first.stop(5)
    assert probe(f"unix:{path}").ready.value
    second.stop(5)


def test_a_socket_left_by_a_killed_server_is_taken_over(directory: Path, context: HostContext) -> None:
    program = (
        "import os, pathlib, tempfile\n"
        "from csi_host.driver import Driver\n"
        "from csi_host.server.endpoint import Endpoint\n"
        "from csi_host.server.server import CsiServer\n"
        f"server = CsiServer(driver=Driver(), driver_name='a', vendor_version='1', endpoint=Endpoint.parse('unix://{directory}/csi.sock'),"
        " serves_controller=False, serves_node=False, has_topology=False, log_slow_interval=0)\n"
        "server.start()\n"
        "os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 9
    assert stat.S_ISSOCK((directory / "csi.sock").stat().st_mode)
    server = server_at(f"unix://{directory}/csi.sock", Driver(node=NodeServer(context)))
    server.start()
    assert probe(server.address).ready.value
    server.stop(5)


def test_a_tcp_endpoint_with_port_0_tells_the_port_it_got(context: HostContext) -> None:
    server = server_at("tcp://127.0.0.1:0", Driver(node=NodeServer(context)))
    server.start()
    assert not server.address.endswith(":0")
    assert probe(server.address).ready.value
    server.stop(5)


def test_two_servers_do_not_share_a_tcp_port(context: HostContext) -> None:
    driver = Driver(node=NodeServer(context))
    first = server_at("tcp://127.0.0.1:0", driver)
    first.start()
    second = server_at(f"tcp://{first.address}", driver)
    with pytest.raises(EndpointError, match=r"cannot be listened on"):
        second.start()
    second.stop(0)
    first.stop(5)


def test_stopping_waits_for_what_is_served_and_refuses_what_is_new(context: HostContext) -> None:
    stuck = Stuck(context)
    with serving(Driver(controller=stuck)) as served:
        call = served.controller.DeleteVolume.future(DELETE)
        assert stuck.begun.acquire(timeout=10)
        outcome: list[Any] = []
        stopping = threading.Thread(target=lambda: outcome.append(served.server.stop(20)))
        stopping.start()
        while served.identity.Probe(csi_pb2.ProbeRequest(), timeout=10).ready.value:
            assert not outcome
        with pytest.raises(grpc.RpcError) as caught:
            served.controller.DeleteVolume(DELETE, timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert not outcome
        stuck.let_go.set()
        assert call.result(10) == csi_pb2.DeleteVolumeResponse()
        stopping.join(10)
    assert outcome == [[]]


def test_a_call_that_waits_for_a_worker_is_refused_when_the_server_stops(context: HostContext) -> None:
    stuck = Stuck(context)
    with serving(Driver(controller=stuck), workers=1) as served:
        first = served.controller.DeleteVolume.future(DELETE)
        assert stuck.begun.acquire(timeout=10)
        second = served.controller.DeleteVolume.future(DELETE)
        stopping = threading.Thread(target=served.server.stop, args=(20,))
        stopping.start()
        while served.identity.Probe(csi_pb2.ProbeRequest(), timeout=10).ready.value:
            pass
        stuck.let_go.set()
        assert first.result(10) == csi_pb2.DeleteVolumeResponse()
        with pytest.raises(grpc.RpcError) as caught:
            second.result(10)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        stopping.join(10)
    assert not stuck.begun.acquire(blocking=False)


def test_what_does_not_end_in_its_grace_is_named_and_its_caller_told(directory: Path, context: HostContext) -> None:
    stuck = Stuck(context)
    server = server_at(f"unix://{directory}/csi.sock", Driver(controller=stuck))
    server.start()
    with grpc.insecure_channel(server.address) as channel:
        call = csi_pb2_grpc.ControllerStub(channel).DeleteVolume.future(DELETE, metadata=(("csi.requestid", "r1"),))
        assert stuck.begun.acquire(timeout=10)
        [unfinished] = server.stop(0.2)
        assert (unfinished.rpc, unfinished.request_id) == ("DeleteVolume", "r1")
        with pytest.raises(grpc.RpcError) as caught:
            call.result(10)
    assert caught.value.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
    assert not (directory / "csi.sock").exists()
    # The handler is still at work: nobody else may begin until this process has gone.
    with pytest.raises(EndpointError, match="another server owns it"):
        server_at(f"unix://{directory}/csi.sock", Driver(controller=stuck)).start()
    stuck.let_go.set()


def test_a_handler_whose_caller_has_left_is_waited_for_all_the_same(context: HostContext) -> None:
    stuck = Stuck(context)
    with serving(Driver(controller=stuck)) as served:
        with pytest.raises(grpc.RpcError):
            served.controller.DeleteVolume(DELETE, timeout=0.2)
        assert stuck.begun.acquire(timeout=10)
        assert [request.rpc for request in served.server.stop(0.2)] == ["DeleteVolume"]
        stuck.let_go.set()
