from collections.abc import Iterator

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from csi_host_rbd.devcluster import DevCluster
from csi_host_rbd.testing.clusters import own_cluster

# What several tests share and asserts as they do.
pytest.register_assert_rewrite(
    *(f"csi_host_rbd.testing.{module}" for module in ("many_lives", "outages", "secret_watch", "wards"))
)

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

# The groups that take minutes, some of them with few tests.
_LONGEST = ("kernel", "machine", "crash/")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Send the tests that must not run beside each other to one worker; the others go by file to whichever is free."""
    return _GroupScheduling(config, log)


class _GroupScheduling(LoadScopeScheduling):  # type: ignore[misc] # xdist has no types
    def _split_scope(self, nodeid: str) -> str:
        return _group(_file(nodeid))


def _file(nodeid: str) -> str:
    return nodeid.partition("::")[0].removeprefix("tests/")


def _group(file: str) -> str:
    if file.startswith(_ONE_AT_A_TIME):
        return "machine"
    # One virtual machine for all of its tests.
    return "kernel" if file.startswith("kernel/") else file


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have what takes longest come first, so that no worker is alone with it in the end."""
    items.sort(key=lambda item: _turn(_group(_file(item.nodeid))))


def _turn(group: str) -> int:
    return next((turn for turn, name in enumerate(_LONGEST) if group.startswith(name)), len(_LONGEST))


@pytest.fixture(scope="session")
def ceph() -> Iterator[DevCluster]:
    """A one-node Ceph, started when the first test of the session asks for it."""
    with own_cluster() as cluster:
        yield cluster
