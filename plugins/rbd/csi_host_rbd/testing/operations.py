"""Counting what a client sends to the OSDs, by the client's own counters."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from csi_host.process import run

_SECONDS = 20.0


@dataclass
class Count:
    """How many operations went to the OSDs; set when the counting has ended."""

    operations: int = 0


class OperationCounter:
    """Reads ``objecter.op_send`` of the connections that have their admin sockets in ``directory``."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @property
    def settings(self) -> dict[str, str]:
        """The librados settings that the client must be connected with."""
        return {"admin_socket": str(self._directory / "$name.$pid.$cctid.asok")}

    @contextmanager
    def counting(self) -> Iterator[Count]:
        """Count what is sent within the ``with``."""
        count = Count()
        before = self._sent()
        yield count
        count.operations = self._sent() - before

    def _sent(self) -> int:
        return sum(_sent(socket) for socket in self._directory.glob("*.asok"))


def _sent(socket: Path) -> int:
    counters = run(["ceph", "--admin-daemon", str(socket), "perf", "dump", "objecter"], timeout=_SECONDS).stdout
    return int(json.loads(counters)["objecter"]["op_send"])
