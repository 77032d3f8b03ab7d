import io
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from csi_host.driver import HostContext
from csi_host.logs import JsonFormatter
from csi_host.testing.contexts import host_context


@dataclass(frozen=True, kw_only=True)
class LogLines:
    """What the host's loggers have written, as text and as values."""

    stream: io.StringIO = field(default_factory=io.StringIO)

    def text(self) -> str:
        return self.stream.getvalue()

    def lines(self, message: str = "") -> list[dict[str, Any]]:
        return [line for line in map(json.loads, self.text().splitlines()) if line["message"].startswith(message)]


@pytest.fixture
def log() -> Iterator[LogLines]:
    """Everything from debug up."""
    lines = LogLines()
    handler = logging.StreamHandler(lines.stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("csi_host")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield lines
    logger.removeHandler(handler)
    logger.setLevel(before)


@pytest.fixture
def context(tmp_path: Path) -> HostContext:
    return host_context(tmp_path)
