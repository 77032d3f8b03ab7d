"""NodeStageVolume keeps the key of a device that is there already: made by a call that was killed, or by ceph-csi."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from csi_host.driver import Driver
from csi_host.process import run
from csi_host.proto import csi_pb2
from csi_host.testing.contexts import host_context
from csi_host.testing.runner import ScriptedRunner
from csi_host.testing.server import Served, serving
from csi_host_rbd.attach.attacher import AttachRequest
from csi_host_rbd.attach.registry import Attachers
from csi_host_rbd.backend import Backend
from csi_host_rbd.ceph.connections import Connections, Timeouts
from csi_host_rbd.cluster_mapping import ClusterMapping
from csi_host_rbd.clusters import Clusters
from csi_host_rbd.encryption.sections import KmsSections
from csi_host_rbd.encryption.service import Encryption
from csi_host_rbd.node.devices import Devices
from csi_host_rbd.node.server import RbdNodeServer
from csi_host_rbd.node.stash import Stash, write_stash
from csi_host_rbd.places import Places
from csi_host_rbd.shared_locks import NoSharedLocks
from csi_host_rbd.testing.nbd_kernel import DEVICE, KEY, NbdKernel
from csi_host_rbd.testing.node_kit import MakeNodeImage
from csi_host_rbd.testing.rig import block, rbd_kms_types

VOLUME = "0001-0006-ceph-a-0000000000000001-11111111-2222-3333-4444-555555555555"


@pytest.mark.ceph
@pytest.mark.parametrize("encrypted", [False, True])
def test_a_living_device_that_a_killed_call_made_can_be_healed_after_the_next(
    nbd_kernel: NbdKernel, make_node_image: MakeNodeImage, *, encrypted: bool
) -> None:
    image = make_node_image(1 << 20)
    pid = nbd_kernel.start("rbd-nbd", "map", str(image.spec), f"--cookie={image.handle}")
    nbd_kernel.connect(pid, cookie=image.handle)
    # dm-crypt's mapping is not there yet.
    stash = Stash(
        pool=image.pool.name, image=image.name, volume_id=image.handle, mounter="rbd-nbd", encrypted=encrypted
    )
    devices = Devices(Attachers([nbd_kernel.attacher()], default="rbd-nbd"), run=ScriptedRunner())
    found = devices.revived(stash, image)
    assert (found is None) is encrypted
    assert nbd_kernel.kept.find(image.spec) == image.attach_request(read_only=False, mounter="rbd-nbd")
    nbd_kernel.kill(pid)
    assert nbd_kernel.attacher().heal(image.spec)


@pytest.fixture
def staged(tmp_path: Path) -> Iterator[Path]:
    """A staging directory where a block volume is staged on a network block device."""
    devices, staging = tmp_path / "dev", tmp_path / "globalmount"
    devices.mkdir()
    staging.mkdir()
    (staging / VOLUME).touch()
    # A block volume's mount is known by the name of the node in the filesystem of devices.
    run(["mount", "-t", "tmpfs", "none", str(devices)], timeout=20)
    (devices / Path(DEVICE).name).touch()
    run(["mount", "--bind", str(devices / Path(DEVICE).name), str(staging / VOLUME)], timeout=20)
    yield staging
    run(["umount", str(staging / VOLUME)], timeout=20)
    run(["umount", str(devices)], timeout=20)


@pytest.fixture
def served(nbd_kernel: NbdKernel, tmp_path: Path) -> Iterator[Served]:
    """A node's driver whose cluster nobody can reach."""
    clusters = tmp_path / "config.json"
    clusters.write_text(json.dumps([{"clusterID": "ceph-a", "monitors": ["192.0.2.1:6789"]}]))
    connections = Connections(timeouts=Timeouts())
    backend = Backend(clusters=Clusters(clusters), connections=connections, instance_id="default")
    node = RbdNodeServer(
        host_context(tmp_path),
        places=Places(backend, ClusterMapping(tmp_path / "cluster-mapping.json"), NoSharedLocks()),
        encryption=Encryption(kms_types=rbd_kms_types(), sections=KmsSections(tmp_path / "kms.json")),
        devices=Devices(Attachers([nbd_kernel.attacher()], default="rbd-nbd"), run=ScriptedRunner()),
    )
    with serving(Driver(node=node), serves_controller=False) as one:
        yield one
    connections.close()


def stage(served: Served, staging: Path, **context: str) -> None:
    request = csi_pb2.NodeStageVolumeRequest(
        volume_id=VOLUME,
        staging_target_path=str(staging),
        volume_capability=block(),
        volume_context={"mapOptions": "nbd:io-timeout=30", **context},
        secrets={"userID": "csi", "userKey": KEY},
    )
    served.node.NodeStageVolume(request, timeout=20)


@pytest.mark.root
@pytest.mark.parametrize("cluster_id", ["ceph-a", ""], ids=["ours", "ceph-csi's"])
def test_staging_a_staged_volume_keeps_its_key_and_asks_no_cluster(
    nbd_kernel: NbdKernel, served: Served, staged: Path, cluster_id: str
) -> None:
    stash = Stash(pool="rbd", image="one", cluster_id=cluster_id, volume_id=VOLUME, mounter="rbd-nbd")
    write_stash(staged, stash)
    pid = nbd_kernel.start("rbd-nbd", "map", "rbd/one", f"--cookie={VOLUME}")
    (nbd_kernel.connect(pid, cookie=VOLUME) / "ro").write_text("1\n")
    stage(served, staged)
    kept = nbd_kernel.kept.find(stash.spec)
    assert kept is not None
    assert (kept.mon_host, kept.user, kept.key) == ("192.0.2.1:6789", "csi", KEY)
    assert (kept.map_options, kept.read_only) == ("io-timeout=30", True)
    nbd_kernel.kill(pid)
    assert nbd_kernel.attacher().heal(stash.spec)


@pytest.mark.root
def test_no_key_is_kept_where_another_cluster_may_be_meant(
    nbd_kernel: NbdKernel, served: Served, staged: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = [{"clusterIDMapping": {"ceph-a": "ceph-b"}, "RBDPoolIDMapping": []}]
    (tmp_path / "cluster-mapping.json").write_text(json.dumps(pairs))
    stash = Stash(pool="rbd", image="one", volume_id=VOLUME, mounter="rbd-nbd")
    write_stash(staged, stash)
    nbd_kernel.connect(nbd_kernel.start("rbd-nbd", "map", "rbd/one", f"--cookie={VOLUME}"), cookie=VOLUME)
    stage(served, staged)
    assert nbd_kernel.kept.find(stash.spec) is None
    assert "cluster ceph-a may be ceph-b as well" in caplog.text


@pytest.mark.root
def test_a_staged_volume_is_staged_also_where_its_key_cannot_be_kept(
    nbd_kernel: NbdKernel, served: Served, staged: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stash = Stash(pool="rbd", image="one", cluster_id="unknown", volume_id=VOLUME, mounter="rbd-nbd")
    write_stash(staged, stash)
    nbd_kernel.connect(nbd_kernel.start("rbd-nbd", "map", "rbd/one", f"--cookie={VOLUME}"), cookie=VOLUME)
    stage(served, staged)
    assert nbd_kernel.kept.find(stash.spec) is None
    assert "how to heal its device is not kept" in caplog.text
    assert KEY not in caplog.text


@pytest.mark.root
def test_a_volume_staged_from_one_site_is_healed_from_there_whatever_the_mapping_says(
    nbd_kernel: NbdKernel, served: Served, staged: Path, tmp_path: Path
) -> None:
    sites = [{"clusterID": "ceph-b", "monitors": ["192.0.2.2:6789"]}]
    sites.append({"clusterID": "ceph-a", "monitors": ["192.0.2.1:6789"]})
    (tmp_path / "config.json").write_text(json.dumps(sites))
    pairs = [{"clusterIDMapping": {"ceph-a": "ceph-b"}, "RBDPoolIDMapping": []}]
    (tmp_path / "cluster-mapping.json").write_text(json.dumps(pairs))
    stash = Stash(pool="rbd", image="one", cluster_id="ceph-a", volume_id=VOLUME, mounter="rbd-nbd")
    write_stash(staged, stash)
    nbd_kernel.connect(nbd_kernel.start("rbd-nbd", "map", "rbd/one", f"--cookie={VOLUME}"), cookie=VOLUME)
    stage(served, staged)
    kept = nbd_kernel.kept.find(stash.spec)
    assert kept is not None
    assert (kept.spec, kept.mon_host) == (stash.spec, "192.0.2.1:6789")


@pytest.mark.root
def test_the_key_of_a_device_of_another_cluster_than_the_stash_says_is_not_replaced(
    nbd_kernel: NbdKernel, served: Served, staged: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stash = Stash(pool="rbd", image="one", cluster_id="ceph-a", volume_id=VOLUME, mounter="rbd-nbd")
    write_stash(staged, stash)
    nbd_kernel.connect(nbd_kernel.start("rbd-nbd", "map", "rbd/one", f"--cookie={VOLUME}"), cookie=VOLUME)
    own = AttachRequest(spec=replace(stash.spec, cluster_id="ceph-b"), mon_host="192.0.2.2:6789", user="csi", key=KEY)
    nbd_kernel.kept.keep(own)
    stage(served, staged)
    assert nbd_kernel.kept.find_volume(VOLUME) == own
    assert "is still a device here of rbd/one of cluster ceph-b" in caplog.text
