"""Where the server listens, read from the text of ``--endpoint``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

MAX_PORT = 65535


class EndpointError(ValueError):
    """The endpoint cannot be read, or not be listened on; the message says what to change."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A unix socket's path, or a TCP host and port (port 0: any free one)."""

    kind: Literal["unix", "tcp"]
    path: Path = Path()
    host: str = ""
    port: int = 0

    @classmethod
    def parse(cls, text: str) -> "Endpoint":
        """Read ``unix:///p``, ``unix://p``, ``unix:p``, an absolute path or ``tcp://host:port``.

        As with ceph-csi, what follows ``unix://`` is below the root whether or not it begins with a slash.
        Raises EndpointError.
        """
        scheme, colon, rest = text.partition(":")
        if text.startswith("/"):
            return cls._unix(text, text)
        if colon and scheme.lower() == "unix":
            return cls._unix(text, "/" + rest.removeprefix("//") if rest.startswith("//") else rest)
        if colon and scheme.lower() == "tcp" and rest.startswith("//"):
            return cls._tcp(text, rest.removeprefix("//"))
        raise EndpointError(f"endpoint {text!r}: expected unix:///path, an absolute path or tcp://host:port")

    @classmethod
    def _unix(cls, text: str, path: str) -> "Endpoint":
        if not path.strip("/") or path.endswith("/"):
            raise EndpointError(f"endpoint {text!r}: expected the path of a socket")
        if "\0" in path:
            raise EndpointError(f"endpoint {text!r}: a path has no NUL in it")
        return cls(kind="unix", path=Path("/" + path.lstrip("/")) if path.startswith("/") else Path(path).absolute())

    @classmethod
    def _tcp(cls, text: str, address: str) -> "Endpoint":
        host, colon, port = address.rpartition(":")
        if not colon or not (port.isascii() and port.isdigit()) or int(port) > MAX_PORT:
            raise EndpointError(f"endpoint {text!r}: expected tcp://host:port with a port from 0 to {MAX_PORT}")
        bare = host.removeprefix("[").removesuffix("]")
        if not bare or (":" in bare and bare == host):
            raise EndpointError(f"endpoint {text!r}: expected a host before the port; an IPv6 address in brackets")
        return cls(kind="tcp", host=bare, port=int(port))

    def __str__(self) -> str:
        return f"unix://{self.path}" if self.kind == "unix" else f"tcp://{self._host_in_address()}:{self.port}"

    @property
    def grpc_target(self) -> str:
        """The address in the form gRPC servers and channels take."""
        return f"unix:{self.path}" if self.kind == "unix" else f"{self._host_in_address()}:{self.port}"

    def _host_in_address(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host
