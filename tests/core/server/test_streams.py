import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from csi_host.driver import Driver, HostContext
from csi_host.errors import NotFound
from csi_host.proto import csi_pb2
from csi_host.request import Request, current_request
from csi_host.services.controller import ControllerServer
from csi_host.services.snapshot_metadata import SnapshotMetadataServer
from csi_host.testing.server import serving

SECRET = "AQBhunter2hunter2=="
CAPABILITY = csi_pb2.VolumeCapability(
    block=csi_pb2.VolumeCapability.BlockVolume(),
    access_mode=csi_pb2.VolumeCapability.AccessMode(mode=csi_pb2.VolumeCapability.AccessMode.SINGLE_NODE_WRITER),
)
REQUEST = csi_pb2.GetMetadataAllocatedRequest(snapshot_id="snap-1", secrets={"userKey": SECRET})


class Blocks(SnapshotMetadataServer):
    """Streams ``count`` messages, then fails with ``error`` if there is one."""

    def __init__(self, context: HostContext, count: int, error: Exception | None = None) -> None:
        super().__init__(context)
        self._count = count
        self._error = error
        self.requests: list[Request | None] = []
        self.closed = threading.Event()

    def GetMetadataAllocated(
        self, request: csi_pb2.GetMetadataAllocatedRequest, context: grpc.ServicerContext
    ) -> Iterator[csi_pb2.GetMetadataAllocatedResponse]:
        del request, context
        try:
            for number in range(self._count):
                self.requests.append(current_request())
                yield csi_pb2.GetMetadataAllocatedResponse(volume_capacity_bytes=number)
            if self._error is not None:
                raise self._error
        finally:
            self.closed.set()


def test_a_stream_is_served_and_logged_once_at_its_end(context: HostContext, log: Any) -> None:
    blocks = Blocks(context, 3)
    with serving(Driver(snapshot_metadata=blocks)) as served:
        messages = list(served.snapshot_metadata.GetMetadataAllocated(REQUEST))
    assert [message.volume_capacity_bytes for message in messages] == [0, 1, 2]
    assert {request.rpc if request else "" for request in blocks.requests} == {"GetMetadataAllocated"}
    [line] = log.lines("GetMetadataAllocated")
    assert (line["code"], line["snapshot_id"]) == ("OK", "snap-1")
    assert SECRET not in log.text()


def test_an_error_in_the_middle_of_a_stream_has_its_status(context: HostContext, log: Any) -> None:
    with serving(Driver(snapshot_metadata=Blocks(context, 2, NotFound(f"snapshot gone, key {SECRET}")))) as served:
        stream = served.snapshot_metadata.GetMetadataAllocated(REQUEST)
        assert [next(stream).volume_capacity_bytes for _ in range(2)] == [0, 1]
        with pytest.raises(grpc.RpcError) as caught:
            next(stream)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert caught.value.details() == "snapshot gone, key ***stripped***"
    assert log.lines("GetMetadataAllocated")[0]["code"] == "NOT_FOUND"


def test_an_unknown_exception_in_a_stream_is_sanitised(context: HostContext, log: Any) -> None:
    with serving(Driver(snapshot_metadata=Blocks(context, 1, ValueError(SECRET)))) as served:
        with pytest.raises(grpc.RpcError) as caught:
            list(served.snapshot_metadata.GetMetadataAllocated(REQUEST))
        assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert SECRET not in str(caught.value) + log.text()


def test_a_streams_request_is_validated(context: HostContext) -> None:
    with serving(Driver(snapshot_metadata=Blocks(context, 1))) as served:
        with pytest.raises(grpc.RpcError) as caught:
            list(served.snapshot_metadata.GetMetadataAllocated(csi_pb2.GetMetadataAllocatedRequest()))
        assert caught.value.details() == "snapshot_id: required"


def test_a_stream_nobody_overrode_is_unimplemented(context: HostContext) -> None:
    request = csi_pb2.GetMetadataDeltaRequest(base_snapshot_id="a", target_snapshot_id="b")
    with serving(Driver(snapshot_metadata=Blocks(context, 1))) as served:
        with pytest.raises(grpc.RpcError) as caught:
            list(served.snapshot_metadata.GetMetadataDelta(request))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_stream_whose_reader_leaves_is_closed_and_logged_as_cancelled(context: HostContext, log: Any) -> None:
    blocks = Blocks(context, 10**9)
    with serving(Driver(snapshot_metadata=blocks)) as served:
        stream = served.snapshot_metadata.GetMetadataAllocated(REQUEST)
        next(stream)
        stream.cancel()
        assert blocks.closed.wait(10)
        # The generator is closed before its surroundings are: wait for those as well.
        assert not served.server.in_flight.wait_until_none(deadline=time.monotonic() + 10)
    assert [line["code"] for line in log.lines("GetMetadataAllocated")] == ["CANCELLED"]


def test_streams_that_nobody_reads_leave_the_threads_to_other_calls(context: HostContext) -> None:
    class Controller(ControllerServer):
        def ValidateVolumeCapabilities(
            self, request: csi_pb2.ValidateVolumeCapabilitiesRequest, context: grpc.ServicerContext
        ) -> csi_pb2.ValidateVolumeCapabilitiesResponse:
            del request, context
            return csi_pb2.ValidateVolumeCapabilitiesResponse(message="answered")

    driver = Driver(snapshot_metadata=Blocks(context, 10**9), controller=Controller(context))
    with serving(driver, workers=2) as served:
        streams = [served.snapshot_metadata.GetMetadataAllocated(REQUEST) for _ in range(4)]
        for stream in streams:
            next(stream)
        request = csi_pb2.ValidateVolumeCapabilitiesRequest(volume_id="volume", volume_capabilities=[CAPABILITY])
        assert served.controller.ValidateVolumeCapabilities(request, timeout=30).message == "answered"
        for stream in streams:
            stream.cancel()
        assert not served.server.in_flight.wait_until_none(deadline=time.monotonic() + 10)


def test_a_stream_ends_when_the_server_stops(context: HostContext) -> None:
    with serving(Driver(snapshot_metadata=Blocks(context, 10**9))) as served:
        stream = served.snapshot_metadata.GetMetadataAllocated(REQUEST)
        next(stream)
        with ThreadPoolExecutor(1) as stopping:
            stopped = stopping.submit(served.server.stop, 30)
            with pytest.raises(grpc.RpcError) as caught:
                list(stream)
            assert stopped.result() == []
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
