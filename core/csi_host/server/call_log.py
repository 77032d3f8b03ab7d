import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
from google.protobuf.message import Message

from csi_host.request import Request
from csi_host.server.error_status import Status
from csi_host.services.secret_fields import stripped

# kubelet and the sidecars ask these again and again; they are worth a line only when they fail.
QUIET = frozenset(
    {
        "Probe",
        "GetPluginCapabilities",
        "ControllerGetCapabilities",
        "GroupControllerGetCapabilities",
        "NodeGetCapabilities",
        "NodeGetVolumeStats",
    }
)
# What a call is about, whichever of these its request has, and the key in the log: "name" is the logger's own.
_SUBJECTS = {
    "name": "requested_name",
    "volume_id": "volume_id",
    "source_volume_id": "source_volume_id",
    "snapshot_id": "snapshot_id",
    "base_snapshot_id": "base_snapshot_id",
    "target_snapshot_id": "target_snapshot_id",
    "group_snapshot_id": "group_snapshot_id",
    "node_id": "node_id",
}
_SERVER_FAULTS = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS})


@dataclass(kw_only=True)
class Outcome:
    """How a call ended, filled in while it is served."""

    code: grpc.StatusCode = grpc.StatusCode.OK
    message: str = ""
    reference: str = ""
    error: BaseException | None = None
    response: Message | None = None

    def failed(self, status: Status, error: BaseException) -> None:
        """Note that the call failed; the log shows where ``error`` came from when it is the server's fault."""
        self.code, self.message, self.reference = status.code, status.message, status.reference
        self.error = error if status.code in _SERVER_FAULTS else None


class CallLog:
    """Writes one line for each call when it has ended, with request and response at debug."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    @contextmanager
    def call(self, request: Request, message: Message) -> Iterator[Outcome]:
        """Log what becomes of the call within the ``with``."""
        outcome = Outcome()
        try:
            yield outcome
        finally:
            level = _level(request.rpc, outcome)
            if self._logger.isEnabledFor(level):
                try:
                    self._write(level, request, message, outcome)
                except Exception:  # a line that cannot be written must not turn a served call into a failed one
                    self._logger.exception("a call could not be logged")

    def _write(self, level: int, request: Request, message: Message, outcome: Outcome) -> None:
        line: dict[str, object] = {
            "rpc": request.rpc,
            "request_id": request.request_id,
            **subjects_of(message),
            "code": outcome.code.name,
            "duration_seconds": round(request.age_seconds(), 6),
        }
        if outcome.message:
            line["error"] = outcome.message
        if outcome.reference:
            line["reference"] = outcome.reference
        if outcome.error is not None:
            line["traceback"] = "".join(traceback.format_exception(outcome.error))
        if self._logger.isEnabledFor(logging.DEBUG):
            line["request"] = stripped(message)
            if outcome.response is not None:
                line["response"] = stripped(outcome.response)
        self._logger.log(level, f"{request.rpc} {outcome.code.name}", extra=line)


def subjects_of(message: Message) -> dict[str, str]:
    """Return the ids and names a request is about."""
    fields = message.DESCRIPTOR.fields_by_name
    present = [name for name in _SUBJECTS if name in fields and getattr(message, name)]
    return {_SUBJECTS[name]: getattr(message, name) for name in present}


def _level(rpc: str, outcome: Outcome) -> int:
    if outcome.code in _SERVER_FAULTS:
        return logging.ERROR
    if outcome.code is not grpc.StatusCode.OK:
        return logging.WARNING
    return logging.DEBUG if rpc in QUIET else logging.INFO
