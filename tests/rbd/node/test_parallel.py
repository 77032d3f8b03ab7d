"""Twenty volumes live through their lives at once, while csi-host is restarted: nothing fails, nothing is lost.

``NODE_ROUNDS=10`` in the environment says how many rounds.
"""

import hashlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from csi_host_rbd.testing.hosted import ASK_AGAIN, hosted
from csi_host_rbd.testing.node_kit import Kit, Node
from csi_host_rbd.testing.rig import mounted

pytestmark = [pytest.mark.ceph, pytest.mark.root, pytest.mark.timeout(1800)]

VOLUMES = 20
ROUNDS = int(os.environ.get("NODE_ROUNDS", "2"))
_KIB = 1024


class Restart:
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


def insist(restart: Restart, call: Callable[[], object]) -> None:
    """Make a call until it is answered; raises what no restart and no other call explains."""
    for _ in range(600):
        try:
            call()
        except grpc.RpcError as error:
            is_restarting = restart.is_due.is_set() and not restart.is_over.is_set()
            # What was under way when the process ended is cancelled.
            allowed = {grpc.StatusCode.ABORTED} | (ASK_AGAIN | {grpc.StatusCode.CANCELLED} if is_restarting else set())
            if error.code() not in allowed:
                raise
            threading.Event().wait(0.1)
        else:
            restart.count()
            return
    raise AssertionError("the call never succeeded")


def live(kit: Kit, name: str, restart: Restart) -> list[str]:
    """Go through the volume's life in every round; return the checksums of the files that it should hold."""
    written: list[str] = []
    for _ in range(ROUNDS):
        insist(restart, kit.stage)
        insist(restart, lambda: kit.publish(name))
        check(kit.target(name), written)
        content = os.urandom(256 * _KIB)
        with (kit.target(name) / f"file-{len(written)}").open("wb") as file:
            file.write(content)
        written.append(hashlib.sha256(content).hexdigest())
        insist(restart, lambda: kit.unpublish(name))
        insist(restart, kit.unstage)
    return written


def check(place: Path, written: list[str]) -> None:
    found = [(place / f"file-{number}").read_bytes() for number in range(len(written))]
    assert [hashlib.sha256(content).hexdigest() for content in found] == written


def test_twenty_volumes_at_once_and_a_restart_lose_nothing_and_leave_nothing(node: Node) -> None:
    capabilities = [mounted(fs_type=("ext4", "xfs")[number % 2]) for number in range(VOLUMES)]
    with ThreadPoolExecutor(4) as callers:
        kits = list(callers.map(node.make_volume, capabilities))
    names = [f"pod-{number}" for number in range(VOLUMES)]
    restart = Restart(VOLUMES * ROUNDS * 2)
    with hosted(node, node.directory) as host, ThreadPoolExecutor(VOLUMES) as pods:
        process = host.start()
        try:
            lives = [pods.submit(live, host.kit(kit), name, restart) for kit, name in zip(kits, names, strict=True)]
            while not restart.is_due.wait(0.2) and not all(one.done() for one in lives):
                pass
            process.stop()
            process = host.start()
            # Channels learn of the new process within a moment.
            threading.Event().wait(1)
            restart.is_over.set()
            written = [one.result() for one in lives]
            for kit, name, sums in zip(kits, names, written, strict=True):
                assert len(sums) == ROUNDS
                host.kit(kit).stage()
                check(host.kit(kit).publish(name), sums)
                host.kit(kit).unpublish(name)
                host.kit(kit).unstage()
        finally:
            process.stop()
    node.machine.assert_clean()
    assert [kit.volume.volume_id for kit in kits if list(kit.staging.iterdir())] == []
