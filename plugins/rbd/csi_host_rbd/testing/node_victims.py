"""Node processes of the rbd driver that are killed (SIGKILL) at a step of a call.

The steps are those that the interpreter's audit hooks tell of (programs that are started, files that are made, written
and removed, sockets that are connected to) and the durable writes to the cluster, so that new code is covered without
being listed.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from csi_host.process import run
from csi_host.proto import csi_pb2_grpc
from csi_host.request import current_request
from csi_host.server.endpoint import Endpoint
from csi_host.server.server import CsiServer
from csi_host.testing.contexts import host_context
from csi_host_rbd.driver import create_driver
from csi_host_rbd.options import OPTIONS
from csi_host_rbd.testing.fast_luks import fast_luks
from csi_host_rbd.testing.rig import rbd_kms_types
from csi_host_rbd.testing.victims import Forked, fork_off

_START_SECONDS = 60.0
_END_SECONDS = 30.0
_DYING = "dying"
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
# What only looks, as audit events are called.
_PASSIVE = (
    *("import", "compile", "exec", "marshal.", "object.", "sys.", "ctypes.", "code.", "gc.", "builtins.", "cpython."),
    *("os.listdir", "os.scandir", "os.putenv", "glob.", "pathlib.", "fcntl.", "mmap.", "socket.__new__", "function."),
    *("time.", "_thread."),
)
# How long a step, such as a program, has been at work when it is to be cut off in the middle.
_DURING_SECONDS = 0.004


@dataclass(frozen=True, kw_only=True)
class NodeOrders:
    """What a node process serves, and where."""

    directory: Path
    clusters_file: Path

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return self.directory / "node.sock"


@dataclass(frozen=True, kw_only=True)
class NodeKill:
    """Die in a call of ``rpc`` at its ``step``-th step, counted from 1: before it, or in the middle of it."""

    rpc: str
    step: int
    is_during: bool = False


class NodeVictim:
    """A process that serves the Node service."""

    def __init__(self, forked: Forked, orders: NodeOrders) -> None:
        self._forked = forked
        self._process = forked.process
        self._told = forked.told
        self._orders = orders

    @contextmanager
    def node(self) -> Iterator[csi_pb2_grpc.NodeStub]:
        """Yield a caller's end of the Node service."""
        with grpc.insecure_channel(
            f"unix://{self._orders.socket}", options=(("grpc.enable_http_proxy", 0),)
        ) as channel:
            yield csi_pb2_grpc.NodeStub(channel)

    def arm(self, kill: NodeKill) -> None:
        """Have it die; calls that are answered before this returns are not concerned."""
        self._told.send(kill)
        if self._told.recv() != kill:
            raise AssertionError("the process did not take its orders")

    def steps(self) -> list[str]:
        """Return the steps of the calls that it was armed for, as far as they have been taken."""
        self._told.send(None)
        return list(self._told.recv())

    def is_killed(self) -> bool:
        """Return whether it has come to the step at which it dies, and wait until it is dead then."""
        with suppress(EOFError, ConnectionError):
            if not self._told.poll() or self._told.recv() != _DYING:
                return False
            self._process.join(_END_SECONDS)
            return True
        return False

    def close(self) -> None:
        """Kill it if need be, and forget it."""
        self._forked.close()


@contextmanager
def node_victim(orders: NodeOrders) -> Iterator[NodeVictim]:
    """Start a process, and yield it when it serves; it is killed in the end, if it is not dead."""
    forked = fork_off(_serve, orders)
    with closing(NodeVictim(forked, orders)) as one:
        with suppress(EOFError):
            if forked.told.poll(_START_SECONDS) and forked.told.recv() is None:
                yield one
                return
        raise AssertionError("the process does not serve")


class _Witness:
    """Hears of every step of a call, and kills its process at the one it was ordered to."""

    def __init__(self, told: Any) -> None:
        self._told = told
        self._guard = threading.Lock()
        self._kill: NodeKill | None = None
        self.steps: list[str] = []

    def arm(self, kill: NodeKill) -> None:
        with self._guard:
            self._kill, self.steps = kill, []

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Hear of an audit event (sys.addaudithook)."""
        if self._kill is None or event.startswith(_PASSIVE):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & _WRITES):
            return
        self._take(f"{event} {arguments[0] if arguments else ''}")

    def before(self, step: str) -> None:
        """Hear what is about to be written to the cluster."""
        self._take(step)

    def after(self, step: str) -> None:
        """Hear that it has been written."""

    def _take(self, step: str) -> None:
        kill, request = self._kill, current_request()
        if kill is None or request is None or request.rpc != kill.rpc:
            return
        with self._guard:
            self.steps.append(step)
            is_it = len(self.steps) == kill.step
        if not is_it:
            return
        self._told.send(_DYING)
        if kill.is_during:
            threading.Timer(_DURING_SECONDS, os.kill, (os.getpid(), signal.SIGKILL)).start()
        else:
            os.kill(os.getpid(), signal.SIGKILL)
            # Nothing more of this thread happens, whenever the signal takes effect.
            threading.Event().wait()


def _serve(orders: NodeOrders, told: Any) -> None:
    logging.basicConfig(filename=orders.directory / "node.log", level=logging.INFO)
    settings: dict[str, Any] = {option.name: option.default for option in OPTIONS} | {
        "cephcsiconfig": orders.clusters_file,
        "qemudirectory": orders.directory / "qemu",
    }
    witness = _Witness(told)
    context = host_context(orders.directory, options=settings, run=fast_luks(run), kms_types=rbd_kms_types())
    server = CsiServer(
        driver=create_driver(context, observers=[witness]),
        driver_name="test.csi.example",
        vendor_version="0.0.0-test",
        endpoint=Endpoint(kind="unix", path=orders.socket),
        serves_controller=False,
        serves_node=True,
        has_topology=False,
        log_slow_interval=0.0,
    )
    with ExitStack() as ends:
        # What the interpreter's own ending does is no step.
        ends.callback(os._exit, 0)
        server.start()
        sys.addaudithook(witness.audit)
        told.send(None)
        with suppress(EOFError, ConnectionError):
            while True:
                order = told.recv()
                if order is not None:
                    witness.arm(order)
                told.send(witness.steps if order is None else order)
