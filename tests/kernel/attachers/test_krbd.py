"""The rbd mounter on the kernel's own client."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from csi_host.node.devices import is_read_only, size_bytes
from csi_host.process import ProcessError, run
from csi_host_rbd.attach.attacher import AttachRequest, DeviceInUse, FeaturesNotSupported
from csi_host_rbd.attach.client import RbdClient
from csi_host_rbd.attach.krbd import KrbdAttacher
from csi_host_rbd.devcluster import DevCluster
from csi_host_rbd.features import Feature
from csi_host_rbd.testing.images import MIB, Images

pytestmark = [pytest.mark.ceph, pytest.mark.root]

RequestFor = Callable[..., AttachRequest]
MODE = "ms_mode=prefer-crc"


def test_an_image_is_mapped_once_found_and_unmapped(
    krbd: KrbdAttacher, images: Images, request_for: RequestFor
) -> None:
    request = request_for(images.make(), options=MODE)
    assert krbd.find(request.spec) is None
    made = krbd.attach(request)
    assert Path(made.device).name.startswith("rbd")
    assert krbd.attach(request) == made == krbd.find(request.spec)
    with Path(made.device).open("r+b") as device:
        device.write(b"data")
    krbd.detach(request.spec)
    krbd.detach(request.spec)
    assert krbd.find(request.spec) is None
    assert images.read(request.spec.image, 0, 4) == b"data"
    assert images.watchers(request.spec.image) == 0


def test_a_read_only_map_refuses_writes_and_is_made_anew_for_writing(
    krbd: KrbdAttacher, images: Images, request_for: RequestFor
) -> None:
    name = images.make()
    read_only = krbd.attach(request_for(name, options=MODE, read_only=True))
    assert read_only.read_only
    assert is_read_only(read_only.device)
    assert not krbd.attach(request_for(name, options=MODE)).read_only


def test_the_device_has_the_size_that_the_image_grew_to(
    krbd: KrbdAttacher, images: Images, request_for: RequestFor
) -> None:
    request = request_for(images.make(32 * MIB), options=MODE)
    device = krbd.attach(request).device
    images.resize(request.spec.image, 96 * MIB)
    assert krbd.grow(request.spec) == 96 * MIB == size_bytes(device)


def test_an_open_or_mounted_device_stays_and_the_error_says_who_has_it(
    krbd: KrbdAttacher, images: Images, request_for: RequestFor, tmp_path: Path
) -> None:
    request = request_for(images.make(), options=MODE)
    device = krbd.attach(request).device
    with Path(device).open("rb"), pytest.raises(DeviceInUse, match="process"):
        krbd.detach(request.spec)
    run(["mkfs.ext4", "-q", device], timeout=60)
    run(["mount", device, str(tmp_path)], timeout=60)
    try:
        with pytest.raises(DeviceInUse, match=str(tmp_path)):
            krbd.detach(request.spec)
    finally:
        run(["umount", str(tmp_path)], timeout=60)
    krbd.detach(request.spec)


def test_a_feature_that_this_kernel_does_not_know_is_named(krbd: KrbdAttacher) -> None:
    krbd.check()
    krbd.check_features(Feature.LAYERING | Feature.EXCLUSIVE_LOCK | Feature.OBJECT_MAP)
    with pytest.raises(FeaturesNotSupported, match=r"journaling.*tryOtherMounters"):
        krbd.check_features(Feature.LAYERING | Feature.JOURNALING)


def test_an_image_of_that_name_elsewhere_is_not_it(
    krbd: KrbdAttacher, images: Images, request_for: RequestFor, ceph: DevCluster
) -> None:
    """Of another cluster, of a RADOS namespace, or a snapshot of the image itself."""
    name = images.make()
    with images.opened(name, read_only=False) as image:
        image.create_snap("then")
    ceph.rbd("namespace", "create", f"{ceph.pool}/{name}")
    ceph.rbd("create", f"{ceph.pool}/{name}/{name}", "--size", "8M")
    snapshot = run(
        ["rbd", "--conf", str(ceph.ceph_conf), "map", f"{ceph.pool}/{name}@then", "--options", f"noudev,{MODE}"],
        timeout=120,
    ).stdout.strip()
    try:
        plain, inside = request_for(name, options=MODE), request_for(name, options=MODE, namespace=name)
        assert krbd.find(plain.spec) is None
        first, second = krbd.attach(inside), krbd.attach(plain)
        assert first.device != second.device
        assert krbd.find(inside.spec) == first
        assert krbd.find(plain.spec) == second
        assert krbd.find(request_for(name, fsid="00000000-0000-0000-0000-000000000000").spec) is None
        assert krbd.find(request_for(name, fsid="").spec) == second
    finally:
        run(["rbd", "unmap", snapshot, "--options", "noudev"], timeout=60)


def test_a_device_is_unmapped_by_its_name_when_the_image_is_not_known(
    krbd: KrbdAttacher, images: Images, request_for: RequestFor
) -> None:
    request = request_for(images.make(), options=MODE)
    device = krbd.attach(request).device
    assert not krbd.detach_device("/dev/loop0")
    assert krbd.detach_device(device)
    assert krbd.find(request.spec) is None


def test_a_map_that_fails_leaves_nothing_and_shows_no_key(
    krbd: KrbdAttacher, images: Images, request_for: RequestFor
) -> None:
    request = request_for(images.make(), options="no_such_option=1")
    with pytest.raises(ProcessError) as caught:
        krbd.attach(request)
    assert request.key not in f"{caught.value}{caught.value.stderr}"
    assert krbd.find(request.spec) is None


@pytest.fixture
def secluded() -> Iterator[Path]:
    """The file of a network namespace from which nothing can be reached."""
    name = "csi-secluded"
    run(["ip", "netns", "add", name], timeout=60)
    yield Path("/run/netns", name)
    run(["ip", "netns", "delete", name], timeout=60)


def test_the_network_namespace_is_entered(images: Images, request_for: RequestFor, secluded: Path) -> None:
    request = request_for(images.make(), options=f"{MODE},mount_timeout=5")
    krbd = KrbdAttacher(run=run, client=RbdClient(run=run, connect_timeout=5), patience=3)
    with pytest.raises(ProcessError):
        krbd.attach(replace(request, network_namespace=secluded))
    assert krbd.find(request.spec) is None
    assert krbd.attach(replace(request, network_namespace=Path("/proc/self/ns/net"))).device
