import logging
import re
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest

from csi_host import errors
from csi_host.driver import Driver, HostContext
from csi_host.proto import csi_pb2
from csi_host.request import Request, current_request, remaining_seconds
from csi_host.server.error_status import MAX_MESSAGE_BYTES, bounded
from csi_host.server.in_flight import InFlightCalls
from csi_host.server.interceptor import HostInterceptor
from csi_host.services.controller import ControllerServer
from csi_host.services.node import NodeServer
from csi_host.testing.server import Served, serving

SECRET = "AQBhunter2hunter2=="
DELETE = csi_pb2.DeleteVolumeRequest(volume_id="vol-1", secrets={"userID": "admin", "userKey": SECRET})
Answer = Callable[[csi_pb2.DeleteVolumeRequest], Any]


class Scripted(ControllerServer):
    """Deletes volumes as the test says."""

    def __init__(self, context: HostContext, delete: Answer) -> None:
        super().__init__(context)
        self._delete = delete

    def CreateVolume(
        self, request: csi_pb2.CreateVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.CreateVolumeResponse:
        del context
        return csi_pb2.CreateVolumeResponse(volume=csi_pb2.Volume(volume_id=request.name))

    def DeleteVolume(
        self, request: csi_pb2.DeleteVolumeRequest, context: grpc.ServicerContext
    ) -> csi_pb2.DeleteVolumeResponse:
        del context
        response: csi_pb2.DeleteVolumeResponse = self._delete(request)
        return response


def driver(context: HostContext, delete: Answer) -> Driver:
    return Driver(controller=Scripted(context, delete))


def failure(served: Served, **call: Any) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        served.controller.DeleteVolume(DELETE, **call)
    return caught.value


def raising(error: BaseException) -> Answer:
    def delete(_request: csi_pb2.DeleteVolumeRequest) -> Any:
        raise error

    return delete


def ok(_request: csi_pb2.DeleteVolumeRequest) -> csi_pb2.DeleteVolumeResponse:
    return csi_pb2.DeleteVolumeResponse()


def csi_errors() -> list[type[errors.CsiError]]:
    classes = [errors.CsiError]
    for known in classes:
        classes.extend(known.__subclasses__())
    return [known for known in classes if known.__module__ == "csi_host.errors"]


@pytest.mark.parametrize("kind", csi_errors())
def test_a_csi_error_becomes_its_code_and_message(context: HostContext, kind: type[errors.CsiError]) -> None:
    with serving(driver(context, raising(kind("volume_id: no such volume")))) as served:
        error = failure(served)
    assert error.code() is kind.code
    assert error.details() == "volume_id: no such volume"


def test_a_csi_error_without_a_message_shows_its_name(context: HostContext) -> None:
    with serving(driver(context, raising(errors.Unavailable()))) as served:
        assert failure(served).details() == "Unavailable"


def test_an_unknown_exception_shows_no_text_but_a_reference_to_the_log(context: HostContext, log: Any) -> None:
    def delete(request: csi_pb2.DeleteVolumeRequest) -> Any:
        raise ValueError(f"key {request.secrets['userKey']} refused")

    with serving(driver(context, delete)) as served:
        error = failure(served)
    assert error.code() is grpc.StatusCode.INTERNAL
    found = re.fullmatch(
        r"unexpected error; the driver's log has the details under reference ([0-9a-f]{16})", str(error.details())
    )
    assert found
    [line] = log.lines("DeleteVolume INTERNAL")
    assert line["reference"] == found[1]
    assert line["level"] == "error"
    assert "test_interceptor.py" in line["traceback"]
    assert line["traceback"].endswith("ValueError: key ***stripped*** refused\n")
    assert SECRET not in log.text() + str(error)


def test_a_chained_exception_is_scrubbed_as_well(context: HostContext, log: Any) -> None:
    def delete(request: csi_pb2.DeleteVolumeRequest) -> Any:
        try:
            int(request.secrets["userKey"])
        except ValueError as error:
            raise KeyError(request.secrets["userKey"]) from error

    with serving(driver(context, delete)) as served:
        failure(served)
    assert "ValueError" in log.lines("DeleteVolume")[0]["traceback"]
    assert SECRET not in log.text()


def test_a_secret_in_a_csi_error_reaches_neither_the_caller_nor_the_log(context: HostContext, log: Any) -> None:
    with serving(driver(context, raising(errors.Unauthenticated(f"--key={SECRET} was refused")))) as served:
        error = failure(served)
    assert error.details() == "--key=***stripped*** was refused"
    assert SECRET not in log.text() + str(error)


def test_an_exit_called_by_a_driver_ends_the_call_and_not_the_server(context: HostContext) -> None:
    with serving(driver(context, raising(SystemExit(5)))) as served:
        assert failure(served, timeout=10).code() is grpc.StatusCode.INTERNAL
        assert failure(served, timeout=10).code() is grpc.StatusCode.INTERNAL


@pytest.mark.parametrize("answer", [None, csi_pb2.CreateVolumeResponse(), "text"])
def test_an_answer_of_the_wrong_type_is_an_internal_error(context: HostContext, log: Any, answer: object) -> None:
    with serving(driver(context, lambda _request: answer)) as served:
        assert failure(served).code() is grpc.StatusCode.INTERNAL
    assert "expected DeleteVolumeResponse" in log.lines("DeleteVolume")[0]["traceback"]


def test_an_internal_csi_error_shows_in_the_log_where_it_came_from(context: HostContext, log: Any) -> None:
    with serving(driver(context, raising(errors.Internal("the pool is odd")))) as served:
        assert failure(served).details() == "the pool is odd"
    [line] = log.lines("DeleteVolume")
    assert "in delete" in line["traceback"]
    assert "reference" not in line


@pytest.mark.parametrize("text", ["x" * 100_000, "ü" * 100_000, "\n" * 100_000, "%" * 100_000])
def test_a_message_of_any_length_reaches_the_caller_bounded(context: HostContext, text: str) -> None:
    with serving(driver(context, raising(errors.NotFound(text)))) as served:
        error = failure(served)
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert str(error.details()).endswith(text[0] + "...")


def test_a_message_that_just_fits_is_not_cut() -> None:
    assert bounded("x" * MAX_MESSAGE_BYTES) == "x" * MAX_MESSAGE_BYTES
    assert len(bounded("x" * (MAX_MESSAGE_BYTES + 1))) == MAX_MESSAGE_BYTES


def test_the_callers_request_id_is_the_drivers_the_logs_and_comes_back(context: HostContext, log: Any) -> None:
    seen: list[Request | None] = []

    def delete(_request: csi_pb2.DeleteVolumeRequest) -> csi_pb2.DeleteVolumeResponse:
        seen.append(current_request())
        return csi_pb2.DeleteVolumeResponse()

    with serving(driver(context, delete)) as served:
        _, call = served.controller.DeleteVolume.with_call(DELETE, metadata=(("csi.requestid", "req-42"),))
    assert seen[0] is not None
    assert (seen[0].rpc, seen[0].request_id) == ("DeleteVolume", "req-42")
    assert log.lines("DeleteVolume")[0]["request_id"] == "req-42"
    assert ("csi.requestid", "req-42") in call.trailing_metadata()


@pytest.mark.parametrize("given", ["with space", "x" * 129, ""])
def test_a_request_id_that_could_break_a_log_line_is_replaced(context: HostContext, given: str) -> None:
    with serving(driver(context, ok)) as served:
        _, call = served.controller.DeleteVolume.with_call(DELETE, metadata=(("csi.requestid", given),))
    assert re.fullmatch("[0-9a-f]{16}", str(dict(call.trailing_metadata())["csi.requestid"]))


def test_a_failed_call_gives_its_request_id_back_too(context: HostContext) -> None:
    with serving(driver(context, raising(errors.NotFound("gone")))) as served:
        error: Any = failure(served, metadata=(("csi.requestid", "req-42"),))
    assert ("csi.requestid", "req-42") in error.trailing_metadata()


def test_generated_request_ids_differ(context: HostContext) -> None:
    ids = set()
    with serving(driver(context, ok)) as served:
        for _ in range(10):
            _, call = served.controller.DeleteVolume.with_call(DELETE)
            ids.add(dict(call.trailing_metadata())["csi.requestid"])
    assert len(ids) == 10


def test_a_driver_knows_how_long_its_caller_waits(context: HostContext) -> None:
    left: list[float | None] = []

    def delete(_request: csi_pb2.DeleteVolumeRequest) -> csi_pb2.DeleteVolumeResponse:
        left.append(remaining_seconds())
        return csi_pb2.DeleteVolumeResponse()

    with serving(driver(context, delete)) as served:
        served.controller.DeleteVolume(DELETE, timeout=30)
        served.controller.DeleteVolume(DELETE)
    assert left[0] is not None
    assert 20 < left[0] < 31  # gRPC rounds a timeout up on its way
    assert left[1] is None


def test_a_call_whose_caller_has_given_up_is_not_begun(context: HostContext) -> None:
    begun: list[str] = []
    first_begun, let_go = threading.Event(), threading.Event()

    def delete(request: csi_pb2.DeleteVolumeRequest) -> csi_pb2.DeleteVolumeResponse:
        begun.append(request.volume_id)
        first_begun.set()
        let_go.wait(20)
        return csi_pb2.DeleteVolumeResponse()

    with serving(driver(context, delete), workers=1) as served:
        first = served.controller.DeleteVolume.future(DELETE)
        assert first_begun.wait(10)
        with pytest.raises(grpc.RpcError) as caught:
            served.controller.DeleteVolume(csi_pb2.DeleteVolumeRequest(volume_id="late"), timeout=0.2)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        let_go.set()
        first.result(10)
        served.controller.DeleteVolume(csi_pb2.DeleteVolumeRequest(volume_id="after"), timeout=10)
    assert begun == ["vol-1", "after"]


class Late(grpc.ServerInterceptor):
    """Stands in for a network that delivers a call when its deadline has passed."""

    def intercept_service(self, continuation: Any, handler_call_details: grpc.HandlerCallDetails) -> Any:
        handler = continuation(handler_call_details)
        time.sleep(0.3)
        return handler


def test_a_call_that_arrives_late_is_refused_before_the_driver(context: HostContext, log: Any) -> None:
    begun: list[str] = []

    def delete(request: csi_pb2.DeleteVolumeRequest) -> csi_pb2.DeleteVolumeResponse:
        begun.append(request.volume_id)
        return csi_pb2.DeleteVolumeResponse()

    with serving(driver(context, delete), interceptors=[Late()]) as served:
        assert failure(served, timeout=0.1).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        # The server works on in the order of arrival: once this one is answered the late one has been dealt with.
        served.controller.DeleteVolume(csi_pb2.DeleteVolumeRequest(volume_id="after"), timeout=10)
    assert begun == ["after"]
    assert all(
        line["code"] == "DEADLINE_EXCEEDED" for line in log.lines("DeleteVolume") if line["volume_id"] == "vol-1"
    )


def test_a_call_leaves_one_line_with_what_an_operator_asks_for(context: HostContext, log: Any) -> None:
    with serving(driver(context, ok)) as served:
        served.controller.DeleteVolume(DELETE)
    [line] = log.lines("DeleteVolume")
    assert line["level"] == "info"
    assert (line["rpc"], line["volume_id"], line["code"]) == ("DeleteVolume", "vol-1", "OK")
    assert 0 <= line["duration_seconds"] < 10
    assert line["request"] == {"volume_id": "vol-1", "secrets": "***stripped***"}
    assert line["response"] == {}
    assert SECRET not in log.text()
    assert "admin" not in log.text()


def test_requests_and_responses_are_logged_at_debug_only(context: HostContext, log: Any) -> None:
    logging.getLogger("csi_host").setLevel(logging.INFO)
    with serving(driver(context, ok)) as served:
        served.controller.DeleteVolume(DELETE)
    [line] = log.lines("DeleteVolume")
    assert not {"request", "response"} & set(line)


def test_a_failed_call_is_a_warning_with_its_message(context: HostContext, log: Any) -> None:
    with serving(driver(context, raising(errors.Aborted("busy")))) as served:
        failure(served)
    [line] = log.lines("DeleteVolume")
    assert (line["level"], line["code"], line["error"]) == ("warning", "ABORTED", "busy")
    assert "traceback" not in line


def test_the_name_of_a_new_volume_is_in_its_line(context: HostContext, log: Any) -> None:
    with serving(driver(context, ok)) as served, pytest.raises(grpc.RpcError):
        served.controller.CreateVolume(csi_pb2.CreateVolumeRequest(name="pvc-7"))
    assert log.lines("CreateVolume")[0]["requested_name"] == "pvc-7"


def test_what_kubelet_asks_all_the_time_is_quiet_until_it_fails(context: HostContext, log: Any) -> None:
    with serving(Driver(controller=ControllerServer(context), node=NodeServer(context))) as served:
        served.identity.Probe(csi_pb2.ProbeRequest())
        served.identity.GetPluginCapabilities(csi_pb2.GetPluginCapabilitiesRequest())
        served.controller.ControllerGetCapabilities(csi_pb2.ControllerGetCapabilitiesRequest())
        served.node.NodeGetCapabilities(csi_pb2.NodeGetCapabilitiesRequest())
        assert {line["level"] for line in log.lines() if "rpc" in line} == {"debug"}
        with pytest.raises(grpc.RpcError):
            served.node.NodeGetVolumeStats(csi_pb2.NodeGetVolumeStatsRequest(volume_id="v", volume_path="/x"))
    assert log.lines("NodeGetVolumeStats")[0]["level"] == "warning"


def test_a_line_that_a_driver_logs_is_scrubbed_and_names_its_call(context: HostContext, log: Any) -> None:
    def delete(request: csi_pb2.DeleteVolumeRequest) -> csi_pb2.DeleteVolumeResponse:
        logging.getLogger("csi_host.driver").warning(f"using {request.secrets['userKey']}")
        return csi_pb2.DeleteVolumeResponse()

    with serving(driver(context, delete)) as served:
        served.controller.DeleteVolume(DELETE, metadata=(("csi.requestid", "req-42"),))
    [line] = log.lines("using")
    assert line["message"] == "using ***stripped***"
    assert line["request_id"] == "req-42"


class Refusing(grpc.ServerInterceptor):
    """A plugin's interceptor that lets nobody in, in gRPC's own way."""

    def intercept_service(self, continuation: Any, handler_call_details: grpc.HandlerCallDetails) -> Any:
        handler = continuation(handler_call_details)

        def refuse(_message: object, context: grpc.ServicerContext) -> Any:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, f"not you, {SECRET}")

        return grpc.unary_unary_rpc_method_handler(refuse, handler.request_deserializer, handler.response_serializer)


def test_a_plugins_interceptor_may_end_a_call_and_is_logged_and_scrubbed(context: HostContext, log: Any) -> None:
    with serving(driver(context, ok), interceptors=[Refusing()]) as served:
        error = failure(served)
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert error.details() == "not you, ***stripped***"
    assert log.lines("DeleteVolume")[0]["code"] == "PERMISSION_DENIED"


class Broken(grpc.ServerInterceptor):
    def intercept_service(self, continuation: Any, handler_call_details: grpc.HandlerCallDetails) -> Any:
        del continuation, handler_call_details
        raise ValueError(SECRET)


def test_a_plugins_broken_interceptor_is_an_internal_error_without_its_text(context: HostContext, log: Any) -> None:
    with serving(driver(context, ok), interceptors=[Broken()]) as served:
        error = failure(served)
    assert error.code() is grpc.StatusCode.INTERNAL
    assert SECRET not in str(error) + log.text()


class Naming(grpc.ServerInterceptor):
    """Notes which call it sees; it runs inside of the host's own, so there is a current request."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def intercept_service(self, continuation: Any, handler_call_details: grpc.HandlerCallDetails) -> Any:
        handler = continuation(handler_call_details)

        def note(message: Any, context: grpc.ServicerContext) -> Any:
            request = current_request()
            self.seen.append(request.rpc if request else "nothing")
            return handler.unary_unary(message, context)

        return grpc.unary_unary_rpc_method_handler(note, handler.request_deserializer, handler.response_serializer)


def test_a_plugins_interceptor_runs_inside_of_context_and_validation(context: HostContext) -> None:
    naming = Naming()
    with serving(driver(context, ok), interceptors=[naming]) as served:
        served.controller.DeleteVolume(DELETE)
        with pytest.raises(grpc.RpcError):
            served.controller.DeleteVolume(csi_pb2.DeleteVolumeRequest())
    assert naming.seen == ["DeleteVolume"]


class PassedDeadline:
    """The context of a call whose deadline passes on the way from gRPC to the handler, where gRPC looks no more."""

    def __init__(self) -> None:
        self.aborted: tuple[grpc.StatusCode, str] | None = None

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()

    def set_trailing_metadata(self, _metadata: object) -> None:
        return

    def time_remaining(self) -> float:
        return 0.0

    def code(self) -> grpc.StatusCode | None:
        return None

    def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.aborted = code, details
        raise Exception  # noqa: TRY002 - as gRPC's own


def test_a_deadline_that_passes_at_the_last_moment_is_seen() -> None:
    interceptor = HostInterceptor(
        calls=InFlightCalls(), pools={}, is_serving=lambda: True, logger=logging.getLogger("csi_host.test")
    )
    begun: list[object] = []
    handler = interceptor.intercept_service(
        lambda _details: grpc.unary_unary_rpc_method_handler(lambda message, _context: begun.append(message)),
        cast("grpc.HandlerCallDetails", SimpleNamespace(method="/csi.v1.Controller/DeleteVolume")),
    )
    assert handler is not None
    assert handler.unary_unary is not None
    late = PassedDeadline()
    with pytest.raises(Exception, match=r"^$"):
        handler.unary_unary(DELETE, cast("grpc.ServicerContext", late))
    assert late.aborted == (
        grpc.StatusCode.DEADLINE_EXCEEDED,
        "the caller's deadline passed before the call was begun",
    )
    assert begun == []


@pytest.mark.parametrize("data", [b"\xff\xff\xff", b"\x0a\x02\xc3\x28"], ids=["no message", "no UTF-8"])
def test_bytes_that_are_no_message_are_an_invalid_argument(
    context: HostContext, caplog: pytest.LogCaptureFixture, data: bytes
) -> None:
    with serving(Driver(controller=ControllerServer(context))) as served:
        call: Any = served.channel.unary_unary("/csi.v1.Controller/CreateVolume")
        with pytest.raises(grpc.RpcError) as caught:
            call(data, timeout=10)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "csi.v1.CreateVolumeRequest" in str(caught.value.details())
    assert "Traceback" not in caplog.text
