import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import rados

from csi_host.process import run
from csi_host_rbd.attach.attacher import Attachment, AttachRequest, ImageSpec
from csi_host_rbd.attach.qemu import QemuAttacher
from csi_host_rbd.devcluster import DevCluster
from csi_host_rbd.testing.images import Images
from csi_host_rbd.testing.machine import Machine


@pytest.fixture
def machine(directory: Path) -> Machine:
    return Machine(directory=directory)


@pytest.fixture
def images(ceph: DevCluster) -> Iterator[Images]:
    # A pool of its own would cost each test seconds: images have names of their own, and nothing here lists a pool.
    with rados.Rados(conffile=str(ceph.ceph_conf)) as handle, handle.open_ioctx(ceph.pool) as ioctx:
        yield Images(ioctx=ioctx)


@pytest.fixture
def directory() -> Iterator[Path]:
    # Not tmp_path, which is too long for a socket.
    path = Path(tempfile.mkdtemp(prefix="csi-q-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def attacher(directory: Path) -> QemuAttacher:
    return QemuAttacher(run=run, directory=directory / "qemu", connect_timeout=10)


@pytest.fixture
def request_for(ceph: DevCluster) -> Callable[..., AttachRequest]:
    secrets = ceph.secrets()

    def make(name: str, **changes: Any) -> AttachRequest:
        values: dict[str, Any] = {
            "spec": ImageSpec(cluster_id="ceph-a", pool=ceph.pool, image=name),
            "mon_host": ",".join(ceph.monitors),
            "user": secrets["userID"],
            "key": secrets["userKey"],
        }
        return AttachRequest(**{**values, **changes})

    return make


@pytest.fixture
def attached(attacher: QemuAttacher, request_for: Callable[..., AttachRequest]) -> Iterator[Callable[..., Attachment]]:
    """Attach images that are detached when the test ends, whatever it did to them."""
    specs: list[ImageSpec] = []

    def attach(name: str, **changes: Any) -> Attachment:
        request = request_for(name, **changes)
        specs.append(request.spec)
        return attacher.attach(request)

    yield attach
    for spec in specs:
        attacher.detach(spec)
