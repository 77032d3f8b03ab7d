"""A small client of QMP, the JSON line protocol through which a qemu storage daemon is steered."""

import json
import socket
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from csi_host.errors import DeadlineExceeded, Internal, Unavailable

_CHUNK_BYTES = 65536
# A line is an answer about one image; far more than this is not QMP.
_MAX_LINE_BYTES = 4 * 1024**2


class QmpRefused(Internal):
    """The daemon understood the command and failed it; the message is the daemon's."""


class QmpTimeout(DeadlineExceeded):
    """The daemon did not answer in time; what it was asked may still happen."""


class QmpClosed(Unavailable):
    """The daemon is not there, or hung up, or does not speak QMP."""


class QmpClient:
    """One connection to a daemon; ``timeout`` in seconds is for each answer, the greeting included.

    A context manager; entering connects and leaves the daemon ready for commands.
    """

    def __init__(self, path: Path, *, timeout: float) -> None:
        self._path = path
        self._timeout = timeout
        self._received = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def __enter__(self) -> Self:
        try:
            self._connect()
        except BaseException:
            self._socket.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def _connect(self) -> None:
        deadline = time.monotonic() + self._timeout
        self._socket.settimeout(self._timeout)
        try:
            self._socket.connect(str(self._path))
        except TimeoutError as error:
            raise QmpTimeout(f"{self._path}: the storage daemon did not take the connection in time") from error
        except OSError as error:
            raise QmpClosed(f"{self._path}: {error.strerror or error}") from error
        # Before it there may be an answer to who was connected last, and hung up within a command.
        while "QMP" not in self._read_message("greeting", deadline):
            pass
        self.execute("qmp_capabilities")

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout: float | None = None) -> Any:
        """Return what ``command`` returned; events that come in between are dropped.

        Raises QmpRefused, QmpTimeout or QmpClosed. No argument ever appears in a message: one may be a key.
        """
        # A daemon hands answers to whoever is connected when they are ready, so no two commands may have one id.
        command_id = str(uuid.uuid4())
        deadline = time.monotonic() + (timeout or self._timeout)
        message = {"execute": command, "arguments": dict(arguments or {}), "id": command_id}
        self._send(command, json.dumps(message).encode() + b"\n", deadline)
        while True:
            answer = self._read_message(command, deadline)
            if "error" in answer and answer.get("id") in {None, command_id}:
                raise QmpRefused(f"{command}: {answer['error'].get('desc', 'failed without saying why')}")
            if "return" in answer and answer.get("id") == command_id:
                return answer["return"]

    def _send(self, command: str, data: bytes, deadline: float) -> None:
        try:
            self._socket.settimeout(self._left(command, deadline))
            self._socket.sendall(data)
        except TimeoutError as error:
            raise self._timed_out(command) from error
        except OSError as error:
            raise QmpClosed(f"{self._path}: the storage daemon hung up at {command}: {error.strerror}") from error

    def _read_message(self, command: str, deadline: float) -> dict[str, Any]:
        line = self._read_line(command, deadline)
        try:
            message = json.loads(line)
        except ValueError as error:
            raise QmpClosed(f"{self._path}: what answers {command} does not speak QMP") from error
        if not isinstance(message, dict):
            raise QmpClosed(f"{self._path}: what answers {command} does not speak QMP")
        return message

    def _read_line(self, command: str, deadline: float) -> bytes:
        while b"\n" not in self._received:
            if len(self._received) > _MAX_LINE_BYTES:
                raise QmpClosed(f"{self._path}: what answers {command} does not speak QMP")
            try:
                self._socket.settimeout(self._left(command, deadline))
                chunk = self._socket.recv(_CHUNK_BYTES)
            except TimeoutError as error:
                raise self._timed_out(command) from error
            except OSError as error:
                raise QmpClosed(f"{self._path}: the storage daemon hung up at {command}: {error.strerror}") from error
            if not chunk:
                raise QmpClosed(f"{self._path}: the storage daemon hung up at {command}")
            self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        return line

    def _left(self, command: str, deadline: float) -> float:
        left = deadline - time.monotonic()
        if left <= 0:
            raise self._timed_out(command)
        return left

    def _timed_out(self, command: str) -> QmpTimeout:
        return QmpTimeout(f"{self._path}: the storage daemon did not answer {command} in time")
