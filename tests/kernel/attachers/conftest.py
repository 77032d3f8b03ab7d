"""Images, and attachers on the real kernel modules; every image is detached when its test ends."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import rados

from csi_host.process import run
from csi_host_rbd.attach.attacher import Attacher, AttachRequest, ImageSpec
from csi_host_rbd.attach.client import RbdClient
from csi_host_rbd.attach.kept_requests import KeptRequests
from csi_host_rbd.attach.keyring import Keyring
from csi_host_rbd.attach.krbd import KrbdAttacher
from csi_host_rbd.attach.nbd import NbdAttacher
from csi_host_rbd.devcluster import DevCluster
from csi_host_rbd.testing.images import Images

RequestFor = Callable[..., AttachRequest]


@pytest.fixture(scope="session")
def handle(ceph: DevCluster) -> Iterator[Any]:
    """One connection for all tests: making one takes seconds without hardware virtualization."""
    with rados.Rados(conffile=str(ceph.ceph_conf)) as connected:
        yield connected


@pytest.fixture
def images(ceph: DevCluster, handle: Any) -> Iterator[Images]:
    with handle.open_ioctx(ceph.pool) as ioctx:
        yield Images(ioctx=ioctx)


@pytest.fixture
def client() -> RbdClient:
    return RbdClient(run=run, connect_timeout=60)


@pytest.fixture
def krbd(client: RbdClient) -> KrbdAttacher:
    return KrbdAttacher(run=run, client=client, patience=3)


@pytest.fixture
def nbd(client: RbdClient) -> NbdAttacher:
    return NbdAttacher(run=run, client=client, kept=KeptRequests(Keyring()), patience=15)


@pytest.fixture
def request_for(ceph: DevCluster, handle: Any, krbd: KrbdAttacher, nbd: NbdAttacher) -> Iterator[RequestFor]:
    """Make requests for images by name; whatever they led to is undone."""
    secrets = ceph.secrets()
    fsid = handle.get_fsid()
    made: list[ImageSpec] = []

    def make(name: str, *, options: str = "", read_only: bool = False, **changes: Any) -> AttachRequest:
        values = {"cluster_id": "dev", "pool": ceph.pool, "image": name, "volume_id": f"volume-of-{name}", "fsid": fsid}
        spec = ImageSpec(**{**values, **changes})
        made.append(spec)
        return AttachRequest(
            spec=spec,
            mon_host=",".join(ceph.monitors),
            user=secrets["userID"],
            key=secrets["userKey"],
            read_only=read_only,
            map_options=options,
        )

    yield make
    attachers: list[Attacher] = [krbd, nbd]
    for spec in made:
        for attacher in attachers:
            attacher.detach(spec)
            assert attacher.find(spec) is None
