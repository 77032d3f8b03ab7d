"""csi-sanity against every driver of this repository, skipping nothing that is not on the list.

The list is ``skipped.toml``: a spec that csi-sanity skips for a capability that is missing is named there with the
reason, so a capability that is lost by mistake fails here, and so does one that is won and not written down.
"""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from csi_host.testing import csi_sanity, host_process
from csi_host.testing.csi_sanity import Settings
from csi_host_rbd.devcluster import DevCluster
from csi_host_rbd.testing.machine import Machine
from csi_host_rbd.testing.pools import PoolView

# The stub makes, stages and publishes no volumes; these specs would not ask whether it does.
_NOT_OF_THE_STUB = (
    r"\[Controller Server\]",
    r"NodePublishVolume",
    r"NodeUnpublishVolume",
    r"should fail when volume does not exist on the specified path",
)
_LIST = Path(__file__).with_name("skipped.toml")

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def directory() -> Iterator[Path]:
    # Not pytest's own directory: its paths are longer than a socket's may be.
    with tempfile.TemporaryDirectory(prefix="csi-sanity-") as path:
        yield Path(path)


@contextmanager
def _rbd(pool: DevCluster, directory: Path, log_file: Path, *, is_split: bool) -> Iterator[Settings]:
    """The rbd driver, as one process or as two, and the settings to test it with."""
    usual = [
        "--driver=rbd",
        "--nodeid=conformance",
        "--drivername=rbd.csi.ceph.com",
        f"--cephcsiconfig={pool.clusters_file}",
        f"--controllersecret={pool.secret_file}",
        f"--qemudirectory={directory / 'qemu'}",
        "--loglevel=debug",
    ]
    settings = Settings(
        endpoint=f"unix://{directory}/csi.sock",
        parameters={"clusterID": pool.cluster_id, "pool": pool.pool, "mounter": "qemu"},
        mutable_parameters={"maxIops": "500"},
        secret=pool.secrets(),
    )
    with ExitStack() as processes:
        if is_split:
            controller = host_process.serving(
                [*usual, "--controllerserver"],
                socket=directory / "controller.sock",
                log_file=log_file.with_suffix(".controller.log"),
            )
            settings = replace(settings, controller_endpoint=processes.enter_context(controller).endpoint)
            usual.append("--nodeserver")
        processes.enter_context(host_process.serving(usual, socket=directory / "csi.sock", log_file=log_file))
        yield settings


@pytest.mark.ceph
@pytest.mark.root
@pytest.mark.parametrize("is_split", [False, True], ids=["one-endpoint", "split"])
@pytest.mark.parametrize("access", ["mount", "block"])
def test_the_rbd_driver_conforms_and_leaves_nothing(
    access: str,
    *,
    is_split: bool,
    ceph: DevCluster,
    csi_sanity_binary: Path,
    reports_directory: Path,
    directory: Path,
) -> None:
    pool = PoolView(cluster=ceph, name=ceph.pool)
    before = _state(pool)
    name = f"rbd-{access}-{'split' if is_split else 'one-endpoint'}"
    log_file = reports_directory / f"{name}.log"
    with _rbd(ceph, directory, log_file, is_split=is_split) as settings:
        report = csi_sanity.run(
            csi_sanity_binary,
            replace(settings, access=access),
            directory=directory,
            junit=reports_directory / f"{name}.xml",
        )
    csi_sanity.assert_conforms(report, _LIST, "rbd")
    pool.wait_until_trash_is_empty()
    assert _state(pool) == before
    Machine(directory=directory).assert_clean()
    assert ceph.secrets()["userKey"] not in "".join(
        file.read_text(encoding="utf-8") for file in reports_directory.glob(f"{name}*.log")
    )


def _state(pool: PoolView) -> tuple[list[str], Mapping[str, Mapping[str, str]]]:
    """Return the images, and the journal without directories that have become empty."""
    return pool.images(), {name: keys for name, keys in pool.journal().items() if keys}


@pytest.mark.root
def test_the_memory_driver_conforms(
    csi_sanity_binary: Path, reports_directory: Path, directory: Path, with_memory_driver: Mapping[str, str]
) -> None:
    arguments = ["--driver=memory", "--nodeid=conformance", f"--memory-directory={directory / 'volumes'}"]
    with host_process.serving(
        arguments,
        socket=directory / "csi.sock",
        log_file=reports_directory / "memory.log",
        environment=with_memory_driver,
    ) as host:
        report = csi_sanity.run(
            csi_sanity_binary,
            Settings(endpoint=host.endpoint),
            directory=directory,
            junit=reports_directory / "memory.xml",
        )
    csi_sanity.assert_conforms(report, _LIST, "memory")
    assert list((directory / "volumes").iterdir()) == []


@pytest.mark.root
def test_the_cephfs_stub_conforms_in_what_it_serves(
    csi_sanity_binary: Path, reports_directory: Path, directory: Path, with_memory_driver: Mapping[str, str]
) -> None:
    # csi-sanity 5.4 fails every Node spec where nobody answers ControllerGetCapabilities, so another driver does.
    controller = ["--driver=memory", "--controllerserver", f"--memory-directory={directory / 'volumes'}"]
    node = ["--driver=cephfs", "--nodeserver", "--nodeid=conformance"]
    with (
        host_process.serving(
            controller,
            socket=directory / "controller.sock",
            log_file=reports_directory / "cephfs.controller.log",
            environment=with_memory_driver,
        ) as controller_host,
        host_process.serving(
            node, socket=directory / "csi.sock", log_file=reports_directory / "cephfs.log"
        ) as node_host,
    ):
        report = csi_sanity.run(
            csi_sanity_binary,
            Settings(
                endpoint=node_host.endpoint,
                controller_endpoint=controller_host.endpoint,
                skip="|".join(_NOT_OF_THE_STUB),
            ),
            directory=directory,
            junit=reports_directory / "cephfs.xml",
        )
    csi_sanity.assert_conforms(report, _LIST, "cephfs")
