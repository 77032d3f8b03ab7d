"""A volume's network block device stays one of the cluster it was attached to: its id is the same at two sites."""

from dataclasses import replace

import pytest

from csi_host_rbd.attach.attacher import DeviceInUse, ImageSpec
from csi_host_rbd.testing.nbd_kernel import DEVICE, REQUEST, SPEC, NbdKernel

HERE = replace(REQUEST, spec=replace(SPEC, fsid="fsid-a"))
THERE = replace(REQUEST, spec=replace(SPEC, cluster_id="ceph-b", fsid="fsid-b"), mon_host="10.0.0.2:6789")


@pytest.fixture(params=["alive", "dead"])
def attached(nbd_kernel: NbdKernel, request: pytest.FixtureRequest) -> NbdKernel:
    """A kernel with a device of one site's image, and what rbd-nbd was told before forgotten."""
    nbd_kernel.attacher().attach(HERE)
    if request.param == "dead":
        nbd_kernel.kill(nbd_kernel.pids)
    nbd_kernel.run.commands.clear()
    return nbd_kernel


@pytest.mark.parametrize("how", ["attach", "reattach"])
@pytest.mark.parametrize(
    ("of", "wanted"),
    [
        (HERE.spec, THERE.spec),
        (HERE.spec, replace(THERE.spec, cluster_id="ceph-a")),
        (HERE.spec, replace(THERE.spec, fsid="")),
        (SPEC, THERE.spec),
    ],
    ids=["both", "fsid", "id, wanted without fsid", "id, kept without fsid"],
)
def test_a_device_gets_no_daemon_of_another_cluster_and_keeps_its_own_key(
    attached: NbdKernel, how: str, of: ImageSpec, wanted: ImageSpec
) -> None:
    own = replace(HERE, spec=of)
    attached.kept.keep(own)
    request = replace(THERE, spec=wanted)
    for read_only in (False, True):
        with pytest.raises(DeviceInUse, match=f"{DEVICE} is still a device here of .*; unstage the volume first"):
            getattr(attached.attacher(), how)(replace(request, read_only=read_only))
    assert attached.run.commands == []
    assert attached.kept.find_volume(SPEC.volume_id) == own


@pytest.mark.parametrize(
    "same",
    [replace(HERE.spec, cluster_id="ceph-b"), SPEC, replace(SPEC, cluster_id="")],
    ids=["by fsid", "by id", "not known"],
)
def test_a_cluster_of_another_name_is_the_same_where_its_own_id_is(attached: NbdKernel, same: ImageSpec) -> None:
    request = replace(HERE, spec=same)
    assert attached.attacher().attach(request).is_alive
    assert attached.kept.find(request.spec) == request


def test_what_was_kept_of_a_device_that_is_gone_keeps_no_other_cluster_out(nbd_kernel: NbdKernel) -> None:
    nbd_kernel.kept.keep(HERE)
    assert nbd_kernel.attacher().reattach(THERE) is None
    assert nbd_kernel.attacher().attach(THERE).is_alive
    assert nbd_kernel.kept.find(THERE.spec) == THERE


def test_a_device_is_detached_and_then_attached_to_the_other_cluster(attached: NbdKernel) -> None:
    attached.attacher().detach(HERE.spec)
    assert attached.attacher().attach(THERE).is_alive
    assert attached.kept.find(THERE.spec) == THERE
