import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from csi_host_rbd.devcluster import DevCluster
from csi_host_rbd.testing.pools import PoolView

_REPORTS = Path(__file__).parents[2] / "build/crash"
_SUMMARY = pytest.StashKey[list[str]]()
# An OSD forgets the watch of a dead client after 30 s, and till then what it had open cannot be deleted. A client says
# every 5 s that it lives.
_WATCH_SECONDS = 8


@pytest.fixture(scope="module")
def forgetful(ceph: DevCluster) -> Iterator[DevCluster]:
    """The cluster, while it forgets dead clients sooner than usual."""
    ceph.ceph("config", "set", "osd", "osd_client_watch_timeout", str(_WATCH_SECONDS))
    yield ceph
    ceph.ceph("config", "rm", "osd", "osd_client_watch_timeout")


@pytest.fixture
def pool(forgetful: DevCluster) -> PoolView:
    """A RADOS namespace of the test's own."""
    return PoolView(cluster=forgetful, name=forgetful.pool).in_namespace(f"crash-{uuid.uuid4().hex[:8]}")


@pytest.fixture
def report(pytestconfig: pytest.Config) -> Callable[[str, Sequence[str]], None]:
    """Write lines to a file in ``build/crash``; those of the "summary" are the last that pytest prints instead."""

    def write(name: str, lines: Sequence[str]) -> None:
        if name == "summary":
            pytestconfig.stash.setdefault(_SUMMARY, []).extend(lines)
            return
        _REPORTS.mkdir(parents=True, exist_ok=True)
        (_REPORTS / name).write_text("\n".join([*lines, ""]), encoding="utf-8")

    return write


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if _SUMMARY in config.stash:
        terminalreporter.section("killed")
        for line in config.stash[_SUMMARY]:
            terminalreporter.line(line)
        terminalreporter.line(f"the steps of each: {_REPORTS}")
