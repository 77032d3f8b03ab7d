"""csi-sanity in full on the kernel's own client; what may be skipped is on the list of tests/conformance."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_host.testing import csi_sanity, host_process
from csi_host.testing.csi_sanity import Settings
from csi_host_rbd.devcluster import DevCluster

pytestmark = [pytest.mark.ceph, pytest.mark.root, pytest.mark.thorough]

_LIST = Path(__file__).parents[1] / "conformance/skipped.toml"
_SECONDS = 1500.0


@pytest.fixture
def short_directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="csi-sanity-") as path:
        yield Path(path)


def test_krbd_conforms(ceph: DevCluster, csi_sanity_binary: Path, short_directory: Path, tmp_path: Path) -> None:
    arguments = [
        "--driver=rbd",
        "--nodeid=conformance",
        "--drivername=rbd.csi.ceph.com",
        f"--cephcsiconfig={ceph.clusters_file}",
        f"--controllersecret={ceph.secret_file}",
        f"--qemudirectory={short_directory / 'qemu'}",
    ]
    with host_process.serving(arguments, socket=short_directory / "csi.sock", log_file=tmp_path / "log") as host:
        report = csi_sanity.run(
            csi_sanity_binary,
            Settings(
                endpoint=host.endpoint,
                parameters={"clusterID": ceph.cluster_id, "pool": ceph.pool, "mounter": "rbd"},
                # The kernel's client knows no limits.
                mutable_parameters={"metadata/team": "storage"},
                secret=ceph.secrets(),
                timeout_seconds=_SECONDS,
            ),
            directory=short_directory,
            junit=tmp_path / "krbd.xml",
        )
        log = host.log()
    csi_sanity.assert_conforms(report, _LIST, "rbd")
    assert list(Path("/sys/bus/rbd/devices").iterdir()) == []
    assert ceph.secrets()["userKey"] not in log
