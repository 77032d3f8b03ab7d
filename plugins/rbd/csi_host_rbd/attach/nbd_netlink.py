"""Telling the kernel the new size of a network block device, through generic netlink (linux/nbd-netlink.h).

rbd-nbd does so itself when the image grows, but without the device's identifier (seen with 16.2.15), and kernels since
5.14 then refuse it ("must specify backend"): the device keeps its old size.
"""

import os
import socket
import struct

_GENERIC = 16
_ERROR = 2
_REQUEST, _ACKNOWLEDGE = 1, 4
_CONTROL_FAMILY, _GET_FAMILY, _FAMILY_ID, _FAMILY_NAME = 16, 3, 1, 2
_RECONFIGURE = 3
_INDEX, _SIZE_BYTES, _BACKEND_IDENTIFIER = 1, 2, 10
_HEADER = struct.Struct("=IHHII")
_GENERIC_HEADER = struct.Struct("=BBH")
_ATTRIBUTE = struct.Struct("=HH")
_SECONDS = 10.0


def set_size(index: int, size_bytes: int, backend: str) -> None:
    """Make ``/dev/nbd<index>``, identified by ``backend``, show ``size_bytes``; raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _GENERIC) as connection:
        connection.settimeout(_SECONDS)
        connection.bind((0, 0))
        family = _family(connection)
        attributes = (
            _attribute(_INDEX, struct.pack("=I", index))
            + _attribute(_SIZE_BYTES, struct.pack("=Q", size_bytes))
            + _attribute(_BACKEND_IDENTIFIER, backend.encode() + b"\0")
        )
        _ask(connection, family, _RECONFIGURE, attributes)


def _family(connection: socket.socket) -> int:
    answer = _ask(connection, _CONTROL_FAMILY, _GET_FAMILY, _attribute(_FAMILY_NAME, b"nbd\0"))
    attributes = answer[_HEADER.size + _GENERIC_HEADER.size :]
    while len(attributes) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(attributes)
        if kind == _FAMILY_ID:
            return int(struct.unpack_from("=H", attributes, _ATTRIBUTE.size)[0])
        attributes = attributes[_padded(length) :]
    raise OSError("the kernel does not say which number its nbd messages have")


def _ask(connection: socket.socket, family: int, command: int, attributes: bytes) -> bytes:
    """Send one message and return the first answer that is no acknowledgement, b"" when there is none."""
    body = _GENERIC_HEADER.pack(command, 1, 0) + attributes
    connection.send(_HEADER.pack(_HEADER.size + len(body), family, _REQUEST | _ACKNOWLEDGE, 1, 0) + body)
    found = b""
    while True:
        data = connection.recv(65536)
        while len(data) >= _HEADER.size:
            length, kind, *_ = _HEADER.unpack_from(data)
            message, data = data[:length], data[_padded(length) :]
            if kind != _ERROR:
                found = message
                continue
            code = -int(struct.unpack_from("=i", message, _HEADER.size)[0])
            if code:
                raise OSError(code, os.strerror(code))
            return found


def _attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(_padded(length) - length)


def _padded(length: int) -> int:
    return (length + 3) & ~3
