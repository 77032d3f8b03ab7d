"""The virtual machine itself: the kernel's own rbd, nbd and dm-crypt on a real cluster."""

from pathlib import Path

import pytest

from csi_host.process import run
from csi_host_rbd.devcluster import DevCluster

pytestmark = [pytest.mark.ceph, pytest.mark.root]


@pytest.mark.parametrize("module", ["rbd", "nbd", "dm_crypt"])
def test_the_kernel_has_the_module(module: str) -> None:
    assert Path("/sys/module", module).is_dir()


def test_the_kernel_maps_an_image_of_the_cluster_outside(ceph: DevCluster) -> None:
    ceph.rbd("create", "one", "--size", "64M", "--image-feature", "layering")
    rbd = ["rbd", "--conf", str(ceph.ceph_conf)]
    device = Path(run([*rbd, "map", "--options", "noudev", "one"], timeout=120).stdout.strip())
    with device.open("r+b") as file:
        file.write(b"written by the kernel")
    run([*rbd, "unmap", "--options", "noudev", str(device)], timeout=120)
    assert ceph.rbd("export", "one", "-")[:21] == "written by the kernel"
    ceph.rbd("rm", "one")
