import time
from dataclasses import dataclass, field

from csi_host.request import current_request


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who holds a lock: the RPC, its request id, and since when (``time.monotonic()``).

    ``node`` is where, when that may be another controller.
    """

    rpc: str
    request_id: str
    since: float = field(default_factory=time.monotonic)
    node: str = ""

    def __str__(self) -> str:
        where = f" on node {self.node}" if self.node else ""
        return f"{self.rpc} (request {self.request_id}){where} for {time.monotonic() - self.since:.1f} s"


def current_holder() -> Holder:
    """Return this thread as a holder: the RPC it serves, or background work."""
    request = current_request()
    if request is None:
        return Holder(rpc="background work", request_id="-")
    return Holder(rpc=request.rpc, request_id=request.request_id)
