"""A node whose csi-host is the real program, with its own command line, log and end."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import grpc

from csi_host.proto import csi_pb2_grpc
from csi_host.testing import host_process
from csi_host.testing.host_process import HostProcess
from csi_host_rbd.testing.node_kit import Kit, Node
from csi_host_rbd.testing.rig import RbdRig

# What another call is at, or a process that starts anew, is asked for again.
ASK_AGAIN = {grpc.StatusCode.ABORTED, grpc.StatusCode.UNAVAILABLE}
# A dead process is noticed at once, and its successor soon.
_CHANNEL = (
    ("grpc.initial_reconnect_backoff_ms", 20),
    ("grpc.max_reconnect_backoff_ms", 100),
    ("grpc.enable_http_proxy", 0),
)


@dataclass(frozen=True, kw_only=True)
class Hosted:
    """A node's csi-host, as a process of its own; ``rig`` calls its Node service."""

    node: Node
    rig: RbdRig
    directory: Path
    arguments: tuple[str, ...]

    def start(self) -> HostProcess:
        """Start the program, and return it when it serves; ending it is the caller's."""
        return host_process.start(
            [
                "--driver=rbd",
                "--nodeserver=true",
                "--nodeid=node-a",
                f"--cephcsiconfig={self.node.directory / 'config.json'}",
                f"--qemudirectory={self.node.directory / 'qemu'}",
                *self.arguments,
            ],
            socket=self.directory / "csi.sock",
            log_file=self.directory / f"csi-host-{len(list(self.directory.glob('*.log')))}.log",
            environment={name: str(self._own_directory(name)) for name in ("TMPDIR", "HOME")},
        )

    def _own_directory(self, name: str) -> Path:
        # What it and its programs keep there is the test's, and can be looked at.
        path = self.directory / name.lower()
        path.mkdir(exist_ok=True)
        return path

    @contextmanager
    def served(self) -> Iterator[HostProcess]:
        """Have the program run for the length of the ``with``; it must end as it should."""
        process = self.start()
        try:
            yield process
        except BaseException:
            process.process.kill()
            process.process.wait()
            raise
        process.stop()

    def kit(self, kit: Kit) -> Kit:
        """Return the calls for a volume that go to this process."""
        return replace(kit, rig=self.rig)


@contextmanager
def hosted(node: Node, directory: Path, *arguments: str) -> Iterator[Hosted]:
    """Yield a node's csi-host, not started yet, with ``arguments`` besides the usual ones."""
    with grpc.insecure_channel(f"unix://{directory / 'csi.sock'}", options=_CHANNEL) as channel:
        served = replace(
            node.rig.served,
            node=csi_pb2_grpc.NodeStub(channel),
            identity=csi_pb2_grpc.IdentityStub(channel),
        )
        yield Hosted(node=node, rig=replace(node.rig, served=served), directory=directory, arguments=arguments)
