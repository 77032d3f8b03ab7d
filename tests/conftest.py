from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from csi_host_rbd.devcluster import DevCluster
from csi_host_rbd.testing.clusters import own_cluster

_TESTS = Path(__file__).parent
# What mounts, uses loop devices, looks for processes of the whole machine or builds wheels: by one worker, in order.
_ONE_AT_A_TIME = (
    "cephfs_stub",
    "common_node",
    "conformance",
    "core",
    "examples",
    "rbd/attach",
    "rbd/node",
    "repo",
    "walk",
)


# Before xdist, which sends a test to its group's worker by what it finds then.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Group the tests that must not run beside each other; the others go by file to whichever worker is free."""
    for item in items:
        file = item.path.relative_to(_TESTS).as_posix() if item.path.is_relative_to(_TESTS) else item.path.as_posix()
        item.add_marker(pytest.mark.xdist_group(_group(file)))


def _group(file: str) -> str:
    if file.startswith(_ONE_AT_A_TIME):
        return "machine"
    # One virtual machine for all of its tests.
    return "kernel" if file.startswith("kernel/") else file


@pytest.fixture(scope="session")
def ceph() -> Iterator[DevCluster]:
    """A one-node Ceph, started when the first test of the session asks for it."""
    with own_cluster() as cluster:
        yield cluster
