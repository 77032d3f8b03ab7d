"""The part of pytest that runs inside the virtual machine: each report is handed out as soon as there is one."""

import json
import os
from pathlib import Path

import pytest

from csi_host_vm.machine import INSIDE

REPORTS = "reports.jsonl"


class Reporter:
    """Writes reports to the shared directory, a line each."""

    def __init__(self, config: pytest.Config, share: Path) -> None:
        self._config = config
        self._file = (share / REPORTS).open("a", encoding="utf-8")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Hand out a report of a test's setup, call or teardown."""
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._file.write(json.dumps(data, default=str) + "\n")
        self._file.flush()


def pytest_configure(config: pytest.Config) -> None:
    """Register the reporter."""
    config.pluginmanager.register(Reporter(config, Path(os.environ[INSIDE])))
