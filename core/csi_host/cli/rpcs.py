"""The RPCs of the CSI spec, read from the descriptors."""

from collections.abc import Sequence
from dataclasses import dataclass

from google.protobuf.descriptor import Descriptor, MethodDescriptor

from csi_host.proto import csi_pb2


class UnknownRpcError(ValueError):
    """No RPC has this name; the message lists those there are."""


@dataclass(frozen=True, kw_only=True)
class Rpc:
    """One method of one service."""

    service: str
    name: str
    request: Descriptor
    answer: Descriptor
    is_streaming: bool

    @classmethod
    def of(cls, method: MethodDescriptor) -> "Rpc":
        """Return what the descriptor of a method says."""
        return cls(
            service=method.containing_service.name,
            name=method.name,
            request=method.input_type,
            answer=method.output_type,
            is_streaming=method.server_streaming,
        )

    def __str__(self) -> str:
        return f"{self.service}/{self.name}{' (stream)' if self.is_streaming else ''}"

    @property
    def path(self) -> str:
        """The name on the wire."""
        return f"/{csi_pb2.DESCRIPTOR.package}.{self.service}/{self.name}"


def all_rpcs() -> Sequence[Rpc]:
    """Return every RPC of the spec, service by service."""
    services = csi_pb2.DESCRIPTOR.services_by_name.values()
    return [Rpc.of(method) for service in services for method in service.methods]


def find_rpc(text: str) -> Rpc:
    """Return the RPC called ``text``: ``CreateVolume`` or ``Controller/CreateVolume``, in upper or lower case.

    The service may have its package before it, as on the wire. Raises UnknownRpcError.
    """
    wanted = f"/{text.removeprefix('/').removeprefix(f'{csi_pb2.DESCRIPTOR.package}.')}".lower()
    for rpc in all_rpcs():
        if f"/{rpc.service}/{rpc.name}".lower().endswith(wanted):
            return rpc
    services = csi_pb2.DESCRIPTOR.services_by_name.values()
    known = "\n".join(
        f"  {service.name}: {', '.join(method.name for method in service.methods)}" for service in services
    )
    raise UnknownRpcError(f"no RPC {text!r}; there are\n{known}")
