"""Processes that serve the rbd driver and are killed (SIGKILL) at a step of their work.

They are forked off a process that has imported everything, so that starting one takes a tenth of a second.
"""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from csi_host.process import run
from csi_host.proto import csi_pb2_grpc
from csi_host.server.endpoint import Endpoint
from csi_host.server.server import CsiServer
from csi_host.testing.contexts import host_context
from csi_host_rbd.driver import create_driver
from csi_host_rbd.options import OPTIONS

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

_START_SECONDS = 60.0
_END_SECONDS = 30.0
_SERVING = "serving"
# multiprocessing looks at all processes when it starts one, and must not meet one that is just being forgotten.
_FORKING = threading.Lock()
# A dead process is noticed at once, and its successor soon.
_CHANNEL = (
    ("grpc.initial_reconnect_backoff_ms", 20),
    ("grpc.max_reconnect_backoff_ms", 100),
    ("grpc.enable_http_proxy", 0),
)


class Moment(StrEnum):
    """When, with respect to a durable step."""

    BEFORE = "before"
    AFTER = "after"


@dataclass(frozen=True, kw_only=True)
class Kill:
    """Die at the ``step``-th durable step, counted from 1; only those that begin with ``beginning`` count."""

    step: int
    moment: Moment
    beginning: str = ""

    def __str__(self) -> str:
        return f"{self.moment} step {self.step}"


@dataclass(frozen=True, kw_only=True)
class Orders:
    """What a process is to serve, and where; ``tells_steps`` has it say what it writes, as far as a pipe holds."""

    socket: Path
    clusters_file: Path
    kill: Kill | None = None
    tells_steps: bool = False
    set_metadata: bool = False


class Victim:
    """A process that serves the rbd driver."""

    def __init__(self, forked: "Forked", socket: Path) -> None:
        self._forked = forked
        self._process = forked.process
        self._socket = socket
        self._told = forked.told

    @contextmanager
    def controller(self) -> Iterator[csi_pb2_grpc.ControllerStub]:
        """Yield a caller's end of the Controller service."""
        with controller_at(self._socket) as stub:
            yield stub

    def steps(self) -> list[str]:
        """Return the durable steps that it has begun, in order, up to now."""
        begun = []
        with suppress(EOFError):
            while self._told.poll():
                moment, what = self._told.recv()
                if moment is Moment.BEFORE:
                    begun.append(str(what))
        return begun

    def wait_until_killed(self) -> None:
        """Wait until it has died by its own hand; raises AssertionError when it lives on, or died of something else."""
        self._process.join(_END_SECONDS)
        if self._process.exitcode != -signal.SIGKILL:
            raise AssertionError(f"the process was to kill itself; its exit code is {self._process.exitcode}")

    def kill(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.join(_END_SECONDS)

    def close(self) -> None:
        """Kill it if need be, and forget it."""
        self._forked.close()


@contextmanager
def controller_at(socket: Path) -> Iterator[csi_pb2_grpc.ControllerStub]:
    """Yield a caller's end of the Controller service of whichever process serves at the socket."""
    with grpc.insecure_channel(f"unix://{socket}", options=_CHANNEL) as channel:
        yield csi_pb2_grpc.ControllerStub(channel)


@contextmanager
def victim(orders: Orders) -> Iterator[Victim]:
    """Start a process, and yield it when it serves; it is killed in the end, if it is not dead."""
    with closing(start(orders)) as one:
        yield one


def start(orders: Orders) -> Victim:
    """Start a process, and return it when it serves; closing it is the caller's."""
    forked = fork_off(_serve, orders)
    one = Victim(forked, orders.socket)
    with ExitStack() as stack:
        stack.callback(one.close)
        _await_serving(forked.told)
        stack.pop_all()
    return one


@dataclass(frozen=True, kw_only=True)
class Forked:
    """A process, and this end of the pipe to it."""

    process: ForkServerProcess
    told: "Connection[Any, Any]"

    def close(self) -> None:
        """Kill it if need be, and forget it."""
        self.process.kill()
        self.process.join(_END_SECONDS)
        self.told.close()
        with _FORKING:
            self.process.close()


def fork_off(serve: Callable[..., None], orders: object) -> Forked:
    """Start a process that calls ``serve`` with its orders and its end of a pipe."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", __name__])
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(orders, theirs), daemon=True)
    with _FORKING:
        process.start()
    theirs.close()
    return Forked(process=process, told=ours)


def _await_serving(told: "Connection[Any, Any]") -> None:
    with suppress(EOFError):
        if told.poll(_START_SECONDS) and told.recv() == _SERVING:
            return
    raise AssertionError("the process does not serve")


class _Witness:
    """Hears of every durable step, says so, and kills its process at the one it was ordered to."""

    def __init__(self, told: "Connection[Any, Any]", orders: Orders) -> None:
        self._told = told
        self._orders = orders
        self._guard = threading.Lock()
        self._begun = 0

    def before(self, step: str) -> None:
        """Hear what is about to be written."""
        if self._orders.kill is not None and step.startswith(self._orders.kill.beginning):
            with self._guard:
                self._begun += 1
        self._hear(Moment.BEFORE, step)

    def after(self, step: str) -> None:
        """Hear that it has been written."""
        self._hear(Moment.AFTER, step)

    def _hear(self, moment: Moment, step: str) -> None:
        if self._orders.tells_steps:
            with self._guard:
                self._told.send((moment, step))
        kill = self._orders.kill
        if kill is None or (self._begun, moment) != (kill.step, kill.moment) or not step.startswith(kill.beginning):
            return
        os.kill(os.getpid(), signal.SIGKILL)
        # Nothing more of this thread happens, whenever the signal takes effect.
        threading.Event().wait()


def _serve(orders: Orders, told: "Connection[Any, Any]") -> None:
    logging.basicConfig(filename=orders.socket.with_suffix(".log"), level=logging.INFO)
    directory = orders.socket.parent
    settings: dict[str, Any] = {option.name: option.default for option in OPTIONS} | {
        "cephcsiconfig": orders.clusters_file,
        "qemudirectory": directory / "qemu",
    }
    context = host_context(directory, options=settings, run=run, set_metadata=orders.set_metadata)
    server = CsiServer(
        driver=create_driver(context, observers=[_Witness(told, orders)]),
        driver_name="test.csi.example",
        vendor_version="0.0.0-test",
        endpoint=Endpoint(kind="unix", path=orders.socket),
        serves_controller=True,
        serves_node=False,
        has_topology=False,
        log_slow_interval=0.0,
    )
    server.start()
    told.send(_SERVING)
    # Nothing is ever sent: this ends when the process of the test does.
    with suppress(EOFError, ConnectionError):
        told.recv()
    os._exit(0)
