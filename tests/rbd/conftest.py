import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_host_rbd.devcluster import DevCluster
from csi_host_rbd.testing.nbd_kernel import NbdKernel
from csi_host_rbd.testing.pools import PoolView
from csi_host_rbd.testing.rig import RbdRig, rbd_rig


@pytest.fixture
def pool(ceph: DevCluster) -> PoolView:
    """A RADOS namespace of the test's own: made in a moment, while making a pool takes the monitor seconds."""
    return PoolView(cluster=ceph, name=ceph.pool).in_namespace(f"test-{uuid.uuid4().hex[:8]}")


@pytest.fixture
def whole_pool(ceph: DevCluster) -> Iterator[PoolView]:
    """A pool of the test's own, seen through its default namespace."""
    view = PoolView(cluster=ceph, name=f"test-{uuid.uuid4().hex[:8]}")
    ceph.create_pool(view.name)
    yield view
    ceph.delete_pool(view.name)


@pytest.fixture
def rig(pool: PoolView, tmp_path: Path) -> Iterator[RbdRig]:
    """The rbd driver behind a real socket, in a namespace of the test's own."""
    with rbd_rig(pool, tmp_path) as one:
        yield one


@pytest.fixture
def nbd_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NbdKernel:
    """A kernel that has the module nbd, on a machine that has the programs."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("rbd-nbd", "rbd", "nsenter", "blockdev"):
        (programs / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return NbdKernel(tmp_path / "sys")
