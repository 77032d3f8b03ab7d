import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from csi_host.driver import HostContext
from csi_host.locks import Operation
from csi_host.request import Request, serving
from csi_host.server.diagnostics import dump_on_signal
from csi_host.server.in_flight import InFlightCalls


@pytest.fixture(autouse=True)
def signal_as_before() -> Iterator[None]:
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)


def test_a_signal_writes_calls_locks_and_threads_into_the_log(context: HostContext, log: Any) -> None:
    calls = InFlightCalls()
    dump_on_signal(calls, context)
    request = Request(rpc="CreateVolume", request_id="req-42")
    with (
        serving(request),
        calls.tracked(request),
        context.volume_locks.hold("pvc-1"),
        context.snapshot_locks.hold("snap-1"),
        context.operation_locks.hold(Operation.CLONE, "vol-1"),
    ):
        os.kill(os.getpid(), signal.SIGUSR1)
        deadline = time.monotonic() + 10
        while not log.lines("thread dump"):
            assert time.monotonic() < deadline, "nothing was written"
            time.sleep(0.01)
    [call] = log.lines("call in flight")
    assert (call["rpc"], call["request_id"]) == ("CreateVolume", "req-42")
    [locks] = [line["locks"] for line in log.lines("locks held")]
    assert locks["volumes"]["pvc-1"].startswith("CreateVolume (request req-42) for")
    assert set(locks["snapshots"]) == {"snap-1"}
    assert locks["operations"]["vol-1"].startswith("Clone: CreateVolume (request req-42)")
    assert "test_diagnostics.py" in log.lines("thread MainThread")[0]["stack"]
