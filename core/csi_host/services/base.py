from typing import Any, ClassVar

import grpc

from csi_host.capabilities import Rules
from csi_host.driver import HostContext
from csi_host.errors import Unimplemented
from csi_host.proto import csi_pb2, csi_pb2_grpc


class ServiceServer:
    """What the servers that a driver writes have in common: capabilities come from the methods a class has.

    ``features`` adds capabilities that no method shows; ``unadvertised`` holds back ones whose methods are served.
    A class with half of a pair, or with a promise it cannot keep, is refused with TypeError when it is made.

    ``withheld`` holds capabilities back for one instance, whose configuration lacks what they need; an instance that
    would advertise something without what it needs is refused as well.
    """

    rules: ClassVar[Rules]
    features: ClassVar[frozenset[str]] = frozenset()
    unadvertised: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, context: HostContext, *, withheld: frozenset[str] = frozenset()) -> None:
        self.context = context
        self._withheld = withheld
        self.rules.check_needs(type(self).__name__, self.advertised())

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        _answer_unimplemented(cls, cls.rules.service)
        cls.rules.check(cls)

    @classmethod
    def capabilities(cls) -> frozenset[str]:
        """Return the names of the capabilities that the class has."""
        return cls.rules.advertised_by(cls)

    def advertised(self) -> frozenset[str]:
        """Return the names of the capabilities to advertise."""
        return self.capabilities() - self._withheld


def _answer_unimplemented(server: type[Any], service: str) -> None:
    generated = getattr(csi_pb2_grpc, f"{service}Servicer")
    for rpc in csi_pb2.DESCRIPTOR.services_by_name[service].methods_by_name:
        if getattr(server, rpc) is getattr(generated, rpc):
            setattr(server, rpc, _unimplemented(rpc))


def _unimplemented(rpc: str) -> Any:
    def answer(_server: object, _request: object, _context: grpc.ServicerContext) -> Any:
        raise Unimplemented(f"{rpc}: this driver does not serve it")

    vars(answer)["answers_unimplemented"] = True
    return answer
