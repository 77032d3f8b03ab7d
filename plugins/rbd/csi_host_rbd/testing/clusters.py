"""A one-node Ceph for as long as tests need it."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from csi_host_rbd import devcluster
from csi_host_rbd.devcluster import DevCluster


@contextmanager
def own_cluster() -> Iterator[DevCluster]:
    """Start a cluster, about 8 s, and remove it at the end."""
    # Not pytest's own directory: its paths are longer than a socket's may be.
    with (
        tempfile.TemporaryDirectory(prefix="csi-ceph-") as directory,
        devcluster.running(Path(directory) / "c") as cluster,
    ):
        yield cluster
