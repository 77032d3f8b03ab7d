"""A session of pytest inside a virtual machine, as the session outside sees it: reports that come one by one.

The machine that dies, hangs or does not boot reports no more: every test that it owes a report to has failed, and the
last lines of the console say why.
"""

import json
import os
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from csi_host_rbd.testing.clusters import own_cluster
from csi_host_vm import machine
from csi_host_vm.hands import Hands
from csi_host_vm.inside import REPORTS

CLUSTER = "CSI_HOST_VM_CLUSTER"
# For each test, since the last one has ended; the first one waits for the boot as well.
_SILENCE_SECONDS = float(os.environ.get("VM_TEST_SECONDS", "900"))
_SESSION_SECONDS = float(os.environ.get("VM_SESSION_SECONDS", "2400"))
_PAUSE_SECONDS = 0.1
_LAST_LINES = 60
_STOP_SECONDS = 20.0


class SilentError(Exception):
    """The machine reports no more; the message ends with its last words."""


class Guest:
    """A machine, with a cluster beside it, that runs tests."""

    def __init__(self, config: pytest.Config, node_ids: Sequence[str], log: Path) -> None:
        self._config = config
        self._log = log
        self._offset = 0
        self._resources = ExitStack()
        try:
            self._start(node_ids)
        except BaseException:
            self._resources.close()
            raise
        self._deadline = time.monotonic() + _SESSION_SECONDS

    def _start(self, node_ids: Sequence[str]) -> None:
        cluster = self._resources.enter_context(own_cluster())
        self._share = Path(self._resources.enter_context(tempfile.TemporaryDirectory(prefix="csi-vm-")))
        self._resources.enter_context(Hands(self._share))
        (self._share / "tests").write_text("\n".join(node_ids), encoding="utf-8")
        inside = machine.SHARE
        pytest_command = [
            *("env", f"{CLUSTER}={cluster.directory}", sys.executable, "-m", "pytest", "-p", "csi_host_vm.inside"),
            *("-p", "no:cacheprovider", f"--override-ini=timeout={_SILENCE_SECONDS:g}", f"--basetemp={inside}/t"),
            f"@{inside}/tests",
        ]
        self._process = machine.boot(shlex.join(pytest_command), share=self._share)
        self._resources.callback(self._end)
        self._console = threading.Thread(target=self._keep_console, name="console", daemon=True)
        self._console.start()

    def _keep_console(self) -> None:
        assert self._process.stdout is not None
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._process.stdout, self._log.open("wb", buffering=0) as file:
            while chunk := self._process.stdout.read1(65536):  # type: ignore[attr-defined]
                file.write(chunk)

    def _end(self) -> None:
        self._process.kill()
        self._process.wait(_STOP_SECONDS)
        self._console.join(_STOP_SECONDS)

    def reports_of(self, node_id: str) -> Iterator[pytest.TestReport]:
        """Yield the reports of one test as they come, the last one is that of its teardown.

        The tests are asked for in their order. Raises SilentError when a report does not come.
        """
        silent_until = time.monotonic() + _SILENCE_SECONDS
        while True:
            report = self._next_report()
            if report is None:
                self._wait(node_id, silent_until)
                continue
            if report.nodeid != node_id:
                raise SilentError(f"a report of {node_id} was expected, got one of {report.nodeid}")
            yield report
            if report.when == "teardown":
                return

    def _next_report(self) -> pytest.TestReport | None:
        path = self._share / REPORTS
        if not path.exists():
            return None
        with path.open("rb") as file:
            file.seek(self._offset)
            line = file.readline()
        if not line.endswith(b"\n"):
            return None
        self._offset += len(line)
        data: dict[str, Any] = json.loads(line)
        report = self._config.hook.pytest_report_from_serializable(config=self._config, data=data)
        assert isinstance(report, pytest.TestReport)
        return report

    def _wait(self, node_id: str, silent_until: float) -> None:
        now = time.monotonic()
        if now > min(silent_until, self._deadline):
            raise SilentError(f"the virtual machine has said nothing of {node_id} in time\n{self.last_words()}")
        if self._process.poll() is not None and not self._has_more():
            raise SilentError(f"the virtual machine has ended without a word of {node_id}\n{self.last_words()}")
        time.sleep(_PAUSE_SECONDS)

    def _has_more(self) -> bool:
        path = self._share / REPORTS
        return path.exists() and path.stat().st_size > self._offset

    def last_words(self) -> str:
        """Return the end of what it has said on its console."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines() if self._log.exists() else []
        return "\n".join([f"The console ({self._log}) ends with:", *lines[-_LAST_LINES:]])

    def close(self) -> None:
        """End the machine and its cluster, whatever they are doing."""
        self._resources.close()
