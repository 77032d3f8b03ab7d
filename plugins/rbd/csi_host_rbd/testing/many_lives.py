"""Many volumes that live through their lives on one node at once, while csi-host is restarted."""

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc

from csi_host_rbd.testing.hosted import ASK_AGAIN, Hosted
from csi_host_rbd.testing.node_kit import Kit

_BYTES = 256 * 1024
_TRIES = 600
_PAUSE_SECONDS = 0.1


class _Restart:
    """The moment in the middle, at which csi-host is started anew."""

    def __init__(self, at: int) -> None:
        self._at = at
        self._lock = threading.Lock()
        self._calls = 0
        self.is_due = threading.Event()
        self.is_over = threading.Event()

    def count(self) -> None:
        """Count a call that was answered."""
        with self._lock:
            self._calls += 1
            if self._calls == self._at:
                self.is_due.set()

    def allowed(self) -> set[grpc.StatusCode]:
        """Return the codes that a caller may see just now."""
        if self.is_due.is_set() and not self.is_over.is_set():
            # What was under way when the process ended is cancelled.
            return ASK_AGAIN | {grpc.StatusCode.CANCELLED}
        return {grpc.StatusCode.ABORTED}


@dataclass(frozen=True, kw_only=True)
class _Life:
    """A volume of a pod; ``name`` is the pod's."""

    kit: Kit
    name: str
    restart: _Restart

    def live(self, rounds: int) -> list[str]:
        """Stage, publish, write and tear down ``rounds`` times; return the checksums of the files written."""
        written: list[str] = []
        for number in range(rounds):
            self._insist(self.kit.stage)
            self._insist(lambda: self.kit.publish(self.name))
            _check(self.kit.target(self.name), written)
            content = os.urandom(_BYTES)
            (self.kit.target(self.name) / f"file-{number}").write_bytes(content)
            written.append(hashlib.sha256(content).hexdigest())
            self._insist(lambda: self.kit.unpublish(self.name))
            self._insist(self.kit.unstage)
        return written

    def _insist(self, call: Callable[[], object]) -> None:
        for _ in range(_TRIES):
            try:
                call()
            except grpc.RpcError as error:
                if error.code() not in self.restart.allowed():
                    raise
                threading.Event().wait(_PAUSE_SECONDS)
            else:
                self.restart.count()
                return
        raise AssertionError("the call never succeeded")


def _check(place: Path, written: Sequence[str]) -> None:
    found = [(place / f"file-{number}").read_bytes() for number in range(len(written))]
    assert [hashlib.sha256(content).hexdigest() for content in found] == written


def live_all_at_once(host: Hosted, kits: Sequence[Kit], *, rounds: int) -> None:
    """Have each of ``kits``, all of this node, live ``rounds`` times, with a restart of csi-host in the middle.

    Raises AssertionError, and grpc.RpcError for what neither the restart nor another call on its volume explains.
    """
    restart = _Restart(len(kits) * rounds * 2)
    lives = [_Life(kit=host.kit(kit), name=f"pod-{number}", restart=restart) for number, kit in enumerate(kits)]
    with ThreadPoolExecutor(len(kits)) as pods:
        process = host.start()
        try:
            all_written = [pods.submit(life.live, rounds) for life in lives]
            while not restart.is_due.wait(0.2) and not all(one.done() for one in all_written):
                pass
            process.stop()
            process = host.start()
            # Channels learn of the new process within a moment.
            threading.Event().wait(1)
            restart.is_over.set()
            for life, written in zip(lives, all_written, strict=True):
                assert len(written.result()) == rounds
                life.kit.stage()
                _check(life.kit.publish(life.name), written.result())
                life.kit.unpublish(life.name)
                life.kit.unstage()
        finally:
            process.stop()
    assert [kit.volume.volume_id for kit in kits if list(kit.staging.iterdir())] == []
