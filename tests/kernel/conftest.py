"""The tests here run inside a virtual machine: outside, one is booted for all of them and its reports are passed on."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

import pytest

from csi_host.node.stats import volume_stats
from csi_host.process import run
from csi_host.testing import csi_sanity
from csi_host_rbd.devcluster import DevCluster
from csi_host_rbd.testing.clusters import own_cluster
from csi_host_rbd.testing.fast_luks import fast_luks
from csi_host_rbd.testing.node_kit import Node
from csi_host_rbd.testing.pools import PoolView
from csi_host_rbd.testing.rig import rbd_rig
from csi_host_vm import machine
from csi_host_vm.cluster import ClusterOutside
from csi_host_vm.guest import CLUSTER, Guest, SilentError

_HERE = Path(__file__).parent
_TOOLS = _HERE.parents[1] / "build/tools"
_CONSOLE = _HERE.parents[1] / "build/kernel/console.log"
_GUEST = pytest.StashKey[Guest | str]()
# Set by `make test-kernel`.
_THOROUGH = "NODE_THOROUGH"
IS_INSIDE = machine.INSIDE in os.environ


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes long; outside, have the machine's own limits of time be the only ones."""
    if _THOROUGH not in os.environ:
        left_out = [item for item in items if item.get_closest_marker("thorough")]
        items[:] = [item for item in items if not item.get_closest_marker("thorough")]
        config.hook.pytest_deselected(items=left_out)
    for item in items:
        if _is_for_the_machine(item):
            item.add_marker(pytest.mark.timeout(0), append=False)


def _is_for_the_machine(item: pytest.Item) -> bool:
    # pytest calls this file's hooks for the tests of other directories as well.
    is_here = item.path.is_relative_to(_HERE)
    return is_here and not IS_INSIDE and item.get_closest_marker("outside") is None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Outside, have a test's reports come from the machine."""
    if not _is_for_the_machine(item):
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in _reports(item):
        report.nodeid = item.nodeid
        item.ihook.pytest_runtest_logreport(report=report)
    # What a test beside the machine has left for others of this directory; nothing was set up for this one.
    item.session._setupstate.teardown_exact(nextitem)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _reports(item: pytest.Item) -> Iterator[pytest.TestReport]:
    guest = _guest(item.session)
    if isinstance(guest, str):
        yield _report(item, "skipped", (str(item.path), 0, f"Skipped: {guest}"))
        return
    try:
        yield from guest.reports_of(_node_id(item))
    except SilentError as error:
        yield _report(item, "failed", str(error))


def _report(
    item: pytest.Item, outcome: Literal["failed", "skipped"], why: tuple[str, int, str] | str
) -> pytest.TestReport:
    return pytest.TestReport(
        nodeid=item.nodeid, location=item.location, keywords={}, outcome=outcome, longrepr=why, when="call"
    )


def _guest(session: pytest.Session) -> Guest | str:
    """Return the machine, booted for the first test, or why there is none."""
    stash = session.config.stash
    if _GUEST not in stash:
        lacking = machine.missing()
        if lacking and os.environ.get("CI") != "true":
            stash[_GUEST] = f"a virtual machine needs: {', '.join(lacking)}"
        else:
            here = [item for item in session.items if _is_for_the_machine(item)]
            if any("csi_sanity_binary" in getattr(item, "fixturenames", ()) for item in here):
                _install_csi_sanity()
            guest = Guest(session.config, [_node_id(item) for item in here], _CONSOLE)
            session.config.add_cleanup(guest.close)
            stash[_GUEST] = guest
    return stash[_GUEST]


def _install_csi_sanity() -> None:
    # Inside there is no network; where it cannot be had the test inside says so.
    with suppress(csi_sanity.CsiSanityMissingError):
        csi_sanity.install(_TOOLS)


def _node_id(item: pytest.Item) -> str:
    # xdist adds the group.
    return item.nodeid.partition("@")[0]


@pytest.fixture(scope="session")
def ceph() -> Iterator[DevCluster]:
    """The cluster outside, or with NODE_CEPH_INSIDE=1 one in the machine itself."""
    if os.environ.get("NODE_CEPH_INSIDE"):
        with own_cluster() as cluster:
            yield cluster
    else:
        yield ClusterOutside(Path(os.environ[CLUSTER]), Path(os.environ[machine.INSIDE]))


@pytest.fixture(scope="session")
def csi_sanity_binary() -> Path:
    """csi-sanity, built outside."""
    return csi_sanity.install(_TOOLS)


@pytest.fixture
def ceph_outside() -> Iterator[DevCluster]:
    """A cluster for tests that boot machines themselves."""
    if lacking := machine.missing():
        if os.environ.get("CI") == "true":
            pytest.fail(f"never skipped in CI; a virtual machine needs: {', '.join(lacking)}")
        pytest.skip(f"a virtual machine needs: {', '.join(lacking)}")
    with own_cluster() as cluster:
        yield cluster


@pytest.fixture
def directory() -> Iterator[Path]:
    # Not tmp_path, which is too long for a socket.
    path = Path(tempfile.mkdtemp(prefix="csi-k-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def node(ceph: DevCluster, directory: Path) -> Iterator[Node]:
    """The rbd driver on a node; nothing may be left of the test's volumes in the kernel."""
    pool = PoolView(cluster=ceph, name=ceph.pool)
    with rbd_rig(pool, directory, volume_stats=volume_stats, run=fast_luks(run)) as rig:
        rig.secrets["encryptionPassphrase"] = "the class's secret"
        one = Node(rig=rig, directory=directory)
        yield one
        one.clear()
    assert left_in_the_kernel() == []


def left_in_the_kernel() -> list[str]:
    """Return what is mapped or opened: everything in this machine is ours."""
    return [
        *(f"rbd{device.name}" for device in Path("/sys/bus/rbd/devices").iterdir()),
        *(device.parent.name for device in Path("/sys/block").glob("nbd*/pid")),
        *(device.name for device in Path("/sys/block").glob("dm-*")),
    ]
