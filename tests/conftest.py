import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_host_rbd import devcluster
from csi_host_rbd.devcluster import DevCluster


@pytest.fixture(scope="session")
def ceph() -> Iterator[DevCluster]:
    """A one-node Ceph, started when the first test of the session asks for it."""
    # Not pytest's own directory: its paths are longer than a socket's may be.
    with (
        tempfile.TemporaryDirectory(prefix="csi-ceph-") as directory,
        devcluster.running(Path(directory) / "c") as cluster,
    ):
        yield cluster
