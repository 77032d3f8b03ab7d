"""What a daemon with librados waits for, asked at its admin socket: that answers while the cluster does not.

The protocol: a command as JSON and a zero byte; the answer is its length, 32 bits in network byte order, and JSON.
"""

import json
import socket
import struct
from pathlib import Path

_SECONDS = 1.0
_LENGTH = struct.Struct(">I")
# A daemon has some hundred requests under way at the most.
_MAX_BYTES = 16 * 1024**2
_CHUNK_BYTES = 65536


def oldest_request_seconds(path: Path) -> float:
    """Return for how long the oldest of the requests under way has been with the OSDs, 0.0 when there are none.

    Raises OSError when nobody answers within a second, ValueError when the answer is not understood.
    """
    requests = json.loads(_asked(path, {"prefix": "objecter_requests"}))
    try:
        return max((float(operation["age"]) for operation in requests["ops"]), default=0.0)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected ops with their age, got something else") from error


def _asked(path: Path, command: dict[str, str]) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_SECONDS)
        connection.connect(str(path))
        connection.sendall(json.dumps(command).encode() + b"\0")
        (length,) = _LENGTH.unpack(_received(connection, _LENGTH.size))
        if length > _MAX_BYTES:
            raise ValueError(f"{path}: an answer of {length} bytes")
        return _received(connection, length)


def _received(connection: socket.socket, length: int) -> bytes:
    content = b""
    while len(content) < length:
        chunk = connection.recv(min(length - len(content), _CHUNK_BYTES))
        if not chunk:
            raise ConnectionResetError("the daemon hung up")
        content += chunk
    return content
