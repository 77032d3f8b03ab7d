import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import rados
import rbd

from csi_host.node.stats import volume_stats
from csi_host.process import run
from csi_host_rbd.backend import Backend
from csi_host_rbd.ceph.connections import Connections, Timeouts
from csi_host_rbd.ceph.create import ImageOptions, create_image
from csi_host_rbd.clusters import Clusters
from csi_host_rbd.credentials import Credentials
from csi_host_rbd.devcluster import DevCluster
from csi_host_rbd.encryption.keys import Keys
from csi_host_rbd.node.image import NodeImage
from csi_host_rbd.testing.fast_luks import fast_luks
from csi_host_rbd.testing.node_kit import FakeProgram, ImageOf, Kit, MakeNodeImage, Node, Refused, Unchanged, content
from csi_host_rbd.testing.pools import PoolView
from csi_host_rbd.testing.rig import rbd_rig
from csi_host_rbd.testing.vault import VaultServer, serving_vault


@pytest.fixture
def image_of(ceph: DevCluster) -> ImageOf:
    """Open the image of a volume as another client of the cluster does: straight through librbd."""

    @contextmanager
    def opened(kit: Kit, *, read_only: bool = False) -> Iterator[Any]:
        with (
            rados.Rados(conffile=str(ceph.ceph_conf)) as handle,
            handle.open_ioctx(kit.rig.pool.name) as ioctx,
            rbd.Image(ioctx, kit.image, read_only=read_only) as image,
        ):
            yield image

    return opened


@pytest.fixture
def refused() -> Refused:
    """Expect the call inside the ``with`` to fail with a code; the words must all be in the message."""

    @contextmanager
    def expecting(code: str, *words: str) -> Iterator[None]:
        with pytest.raises(grpc.RpcError) as caught:
            yield
        assert caught.value.code().name == code, caught.value.details()
        for word in words:
            assert word in str(caught.value.details())

    return expecting


@pytest.fixture
def directory() -> Iterator[Path]:
    # Not tmp_path, which is too long for a socket.
    path = Path(tempfile.mkdtemp(prefix="csi-n-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def unchanged(image_of: ImageOf) -> Unchanged:
    """Return a function that says whether an image still is what it was when it was asked about first."""

    def remember(kit: Kit) -> Callable[[], bool]:
        with image_of(kit, read_only=True) as image:
            before = content(image)

        def check() -> bool:
            with image_of(kit, read_only=True) as image:
                return content(image) == before

        return check

    return remember


@pytest.fixture
def fake_program(directory: Path, monkeypatch: pytest.MonkeyPatch) -> FakeProgram:
    """Put a shell script before the real program of that name."""
    programs = directory / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")

    def make(name: str, script: str) -> None:
        path = programs / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return make


def other_site(directory: Path) -> dict[str, Path]:
    # Not there, unless the test writes it.
    return {"clustermapping": directory / "mapping.json"}


@contextmanager
def node_in(ceph: DevCluster, directory: Path) -> Iterator[Node]:
    # A pool of its own would cost each test seconds; no test here lists a pool.
    pool = PoolView(cluster=ceph, name=ceph.pool)
    with rbd_rig(pool, directory, options=other_site(directory), volume_stats=volume_stats) as rig:
        one = Node(rig=rig, directory=directory)
        yield one
        one.clear()


@pytest.fixture
def node(ceph: DevCluster, directory: Path) -> Iterator[Node]:
    with node_in(ceph, directory) as one:
        yield one


@pytest.fixture
def second_node(ceph: DevCluster) -> Iterator[Node]:
    """Another node of the cluster: its own csi-host, its own storage daemons."""
    directory = Path(tempfile.mkdtemp(prefix="csi-n-"))
    with node_in(ceph, directory) as one:
        yield one
    shutil.rmtree(directory)


@pytest.fixture
def short_watches(ceph: DevCluster) -> Iterator[None]:
    """Have the cluster forget a dead client sooner than after the usual 30 s."""
    ceph.ceph("config", "set", "osd", "osd_client_watch_timeout", "6")
    yield
    ceph.ceph("config", "rm", "osd", "osd_client_watch_timeout")


@pytest.fixture
def make_node_image(ceph: DevCluster) -> Iterator[MakeNodeImage]:
    """Make an image of a size in bytes, and return it as a node knows it; ``keys`` of an encrypted one."""
    connections = Connections(timeouts=Timeouts())
    backend = Backend(clusters=Clusters(ceph.clusters_file), connections=connections, instance_id="default")
    credentials = Credentials.from_secrets(ceph.secrets())

    def make(size_bytes: int, keys: Keys | None = None) -> NodeImage:
        name = f"image-{uuid.uuid4()}"
        create_image(pool, name, size_bytes, ImageOptions())
        return NodeImage(cluster=cluster, pool=pool, name=name, credentials=credentials, handle=name, keys=keys)

    with backend.open(ceph.cluster_id, credentials) as cluster:
        pool = cluster.pool(ceph.pool)
        yield make
    connections.close()


@pytest.fixture
def vault() -> Iterator[VaultServer]:
    with serving_vault() as server:
        yield server


@pytest.fixture
def encrypting_node(ceph: DevCluster, directory: Path, vault: VaultServer) -> Iterator[Node]:
    """A node whose driver has key management systems: the default one, "wrapping" and "vault-1"."""
    sections = {
        "wrapping": {"encryptionKMSType": "metadata"},
        "vault-1": {"encryptionKMSType": "vault", "vaultAddress": vault.address, "vaultBackendPath": "secret"},
    }
    (directory / "kms.json").write_text(json.dumps(sections))
    pool = PoolView(cluster=ceph, name=ceph.pool)
    options = other_site(directory)
    with rbd_rig(pool, directory, options=options, volume_stats=volume_stats, run=fast_luks(run)) as rig:
        rig.secrets.update({"encryptionPassphrase": "the secret of the class", "vaultToken": vault.root_token})
        one = Node(rig=rig, directory=directory)
        yield one
        one.clear()
