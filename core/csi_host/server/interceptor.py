"""What surrounds every call, from outside to inside: its context, its log line, its status, its validation."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import grpc
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from csi_host import logs
from csi_host.errors import DeadlineExceeded, InvalidArgument, Unavailable
from csi_host.proto import csi_pb2
from csi_host.request import Request, serving
from csi_host.server import error_status, request_context
from csi_host.server.call_log import CallLog, Outcome
from csi_host.server.in_flight import InFlightCalls
from csi_host.server.validation import validate
from csi_host.services.secret_fields import secret_values

Behavior = Callable[[Any, grpc.ServicerContext], Any]
# In quotes: RpcMethodHandler is generic for the type checker only.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Handler | None]"


@dataclass(frozen=True, kw_only=True)
class _Rpc:
    name: str
    request: type[Message]
    response: type[Message]
    is_stream: bool
    is_identity: bool


class _Malformed:
    """What was sent instead of a message."""


class HostInterceptor(grpc.ServerInterceptor):
    """The outermost interceptor, around all of a plugin's; ``pools`` gives some RPCs threads of their own, by path.

    gRPC looks for a handler's own pool at the outermost callable only, which is the one made here.
    """

    def __init__(
        self,
        *,
        calls: InFlightCalls,
        pools: Mapping[str, ThreadPoolExecutor],
        is_serving: Callable[[], bool],
        logger: logging.Logger,
    ) -> None:
        self._calls = calls
        self._pools = pools
        self._is_serving = is_serving
        self._log = CallLog(logger)
        self._rpcs = dict(_rpcs())

    def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> "Handler | None":
        """Return the handler of a call with everything around it."""
        rpc = self._rpcs.get(handler_call_details.method)
        if rpc is None:
            return continuation(handler_call_details)
        try:
            handler = continuation(handler_call_details)
        except Exception as error:  # noqa: BLE001 - a plugin's interceptor; gRPC would answer UNKNOWN
            handler = _handler(rpc, _raising(error))
        if handler is None:
            return None
        behavior = handler.unary_stream if rpc.is_stream else handler.unary_unary
        if behavior is None:
            return handler
        outermost = self._stream(rpc, behavior) if rpc.is_stream else self._unary(rpc, behavior)
        if handler_call_details.method in self._pools:
            vars(outermost)["experimental_thread_pool"] = self._pools[handler_call_details.method]
        return _handler(rpc, outermost)

    def _unary(self, rpc: _Rpc, behavior: Behavior) -> Behavior:
        def answer(message: "Message | _Malformed", context: grpc.ServicerContext) -> Message:
            with self._call(rpc, message, context) as outcome:
                outcome.response = _checked(behavior(message, context), rpc)
                return outcome.response
            raise AssertionError("a failed call was aborted")

        return answer

    def _stream(self, rpc: _Rpc, behavior: Behavior) -> Behavior:
        def answer(message: "Message | _Malformed", context: grpc.ServicerContext) -> Iterator[Message]:
            with self._call(rpc, message, context) as outcome:
                try:
                    for response in behavior(message, context):
                        # A stream may go on for hours, and its reader can ask for the rest of it.
                        self._refuse_when_stopping(rpc)
                        yield _checked(response, rpc)
                except GeneratorExit:
                    outcome.code = grpc.StatusCode.CANCELLED
                    raise

        return answer

    @contextmanager
    def _call(self, rpc: _Rpc, received: "Message | _Malformed", context: grpc.ServicerContext) -> Iterator[Outcome]:
        message = rpc.request() if isinstance(received, _Malformed) else received
        request = request_context.begin(rpc.name, context)
        scrub = logs.Scrubber(lambda: secret_values(message))
        with (
            serving(request),
            logs.withholding(scrub),
            self._calls.tracked(request),
            self._log.call(request, message) as outcome,
        ):
            try:
                self._refuse_when_stopping(rpc)
                _refuse_late(request)
                _refuse_malformed(rpc, received)
                validate(message)
                yield outcome
                outcome.code = _code_set(context) or grpc.StatusCode.OK
            except (Exception, SystemExit) as error:  # noqa: BLE001 - the one place where errors become statuses
                status = _aborted_by_plugin(context, error, scrub) or error_status.status_of(error, scrub)
                outcome.failed(status, error)
                context.abort(status.code, status.message)

    def _refuse_when_stopping(self, rpc: _Rpc) -> None:
        # UNAVAILABLE means "ask again" to all sidecars. Identity goes on: Probe answers that the driver is not ready.
        if not rpc.is_identity and not self._is_serving():
            raise Unavailable("this server is stopping")


def _refuse_malformed(rpc: _Rpc, received: "Message | _Malformed") -> None:
    if isinstance(received, _Malformed):
        raise InvalidArgument(f"the request is no {rpc.request.DESCRIPTOR.full_name} message")


def _refuse_late(request: Request) -> None:
    if request.deadline is not None and request.deadline <= time.monotonic():
        raise DeadlineExceeded("the caller's deadline passed before the call was begun")


def _code_set(context: grpc.ServicerContext) -> grpc.StatusCode | None:
    # The typed interface lacks the getters, which every grpcio has had since 1.45.
    code: grpc.StatusCode | None = cast("Any", context).code()
    return code


def _aborted_by_plugin(
    context: grpc.ServicerContext, error: BaseException, scrub: logs.Scrubber
) -> error_status.Status | None:
    # gRPC's abort sets the code and raises a bare Exception: what a plugin's interceptor (one that authenticates, say)
    # has decided stands.
    code = _code_set(context)
    if code is None or type(error) is not Exception or error.args:
        return None
    details = cast("Any", context).details() or b""
    text = details.decode(errors="replace") if isinstance(details, bytes) else str(details)
    return error_status.Status(code=code, message=error_status.bounded(scrub(text)))


def _checked(response: Any, rpc: _Rpc) -> Message:
    if not isinstance(response, rpc.response):
        raise TypeError(f"{rpc.name} returned {type(response).__name__}, expected {rpc.response.__name__}")
    return response


def _raising(error: Exception) -> Behavior:
    def behavior(_message: object, _context: grpc.ServicerContext) -> Any:
        raise error

    return behavior


def _handler(rpc: _Rpc, behavior: Behavior) -> Handler:
    make = grpc.unary_stream_rpc_method_handler if rpc.is_stream else grpc.unary_unary_rpc_method_handler
    return make(
        behavior, request_deserializer=_parser_of(rpc.request), response_serializer=rpc.response.SerializeToString
    )


def _parser_of(request: type[Message]) -> Callable[[bytes], "Message | _Malformed"]:
    def parse(data: bytes) -> "Message | _Malformed":
        try:
            return request.FromString(data)
        except DecodeError:
            # Raised here it would be INTERNAL, with gRPC's own stack trace in the log.
            return _Malformed()

    return parse


def _rpcs() -> Iterator[tuple[str, _Rpc]]:
    for service in csi_pb2.DESCRIPTOR.services_by_name.values():
        for method in service.methods:
            yield (
                f"/{service.full_name}/{method.name}",
                _Rpc(
                    name=method.name,
                    request=GetMessageClass(method.input_type),
                    response=GetMessageClass(method.output_type),
                    is_stream=method.server_streaming,
                    is_identity=service.name == "Identity",
                ),
            )
