"""A volume that still has a network block device of the lost site is staged from the other one once it is unstaged."""

from dataclasses import replace
from pathlib import Path

import pytest

from csi_host.access import AccessMode, VolumeAccess
from csi_host.testing.runner import ScriptedRunner
from csi_host_rbd.attach.attacher import AttachRequest, DeviceInUse
from csi_host_rbd.attach.registry import Attachers
from csi_host_rbd.node.devices import Devices
from csi_host_rbd.node.image import NodeImage
from csi_host_rbd.node.staging import Staging
from csi_host_rbd.node.stash import STASH_NAME, Stash, read_stash, write_stash
from csi_host_rbd.node.volumes import NodeVolumes
from csi_host_rbd.testing.nbd_kernel import DEVICE, NbdKernel
from csi_host_rbd.testing.node_kit import MakeNodeImage

pytestmark = pytest.mark.ceph

ACCESS = VolumeAccess(mode=AccessMode.SINGLE_NODE_WRITER, is_block=True)
REFUSAL = f"{DEVICE} is still a device here of .* of cluster fsid-a.*; unstage the volume first"


@pytest.fixture
def image(make_node_image: MakeNodeImage) -> NodeImage:
    """The volume's image at the site that is left."""
    return make_node_image(1 << 20)


@pytest.fixture
def staging(tmp_path: Path, image: NodeImage) -> Staging:
    directory = tmp_path / "globalmount"
    directory.mkdir()
    return Staging.of(str(directory), image.handle)


def at_the_lost_site(image: NodeImage) -> AttachRequest:
    """Return how the image of the same pool and name was attached there."""
    request = image.attach_request(read_only=False, mounter="rbd-nbd")
    spec = replace(request.spec, cluster_id="site-a", fsid="fsid-a")
    return replace(request, spec=spec, mon_host="192.0.2.1:6789")


def stash_of(request: AttachRequest) -> Stash:
    spec = request.spec
    return Stash(
        pool=spec.pool,
        image=spec.image,
        cluster_id=spec.cluster_id,
        fsid=spec.fsid,
        volume_id=spec.volume_id,
        mounter="rbd-nbd",
    )


def volumes_on(nbd_kernel: NbdKernel) -> tuple[NodeVolumes, Devices]:
    devices = Devices(Attachers([nbd_kernel.attacher()], default="rbd-nbd"), run=ScriptedRunner())
    return NodeVolumes(run=nbd_kernel.run, devices=devices), devices


def attach(nbd_kernel: NbdKernel, request: AttachRequest, *, is_alive: bool) -> None:
    nbd_kernel.attacher().attach(request)
    if not is_alive:
        nbd_kernel.kill(nbd_kernel.pids)
    nbd_kernel.run.commands.clear()


@pytest.mark.parametrize("is_alive", [True, False])
@pytest.mark.parametrize("lost", ["nothing", "the stash", "the key"])
def test_it_is_refused_and_the_lost_sites_device_is_unstaged_as_that_sites(
    nbd_kernel: NbdKernel, image: NodeImage, staging: Staging, lost: str, *, is_alive: bool
) -> None:
    own = at_the_lost_site(image)
    attach(nbd_kernel, own, is_alive=is_alive)
    if lost == "the key":
        nbd_kernel.kept.forget(own.spec)
    if lost != "the stash":
        write_stash(staging.directory, stash_of(own))
    volumes, _ = volumes_on(nbd_kernel)
    with pytest.raises(DeviceInUse, match=REFUSAL):
        volumes.stage(staging, ACCESS, image)
    assert nbd_kernel.run.commands == []
    assert nbd_kernel.kept.find_volume(image.handle) == (None if lost == "the key" else own)
    assert read_stash(staging.directory) == (None if lost == "the stash" else stash_of(own))
    volumes.unstage(staging)
    assert nbd_kernel.attacher().find(own.spec) is None
    assert not (staging.directory / STASH_NAME).exists()
    monitors = [command.argv[command.argv.index("-m") + 1] for command in nbd_kernel.run.ran("rbd-nbd")[:-1]]
    assert monitors == ([] if is_alive or lost == "the key" else [own.mon_host])


def test_the_passphrase_of_the_other_sites_image_is_not_changed_on_the_lost_sites_device(
    nbd_kernel: NbdKernel, image: NodeImage
) -> None:
    own = at_the_lost_site(image)
    attach(nbd_kernel, own, is_alive=True)
    _, devices = volumes_on(nbd_kernel)
    with pytest.raises(DeviceInUse, match=REFUSAL), devices.with_header(stash_of(own), image):
        pass


def test_a_stash_whose_device_is_gone_keeps_no_other_cluster_out(nbd_kernel: NbdKernel, image: NodeImage) -> None:
    _, devices = volumes_on(nbd_kernel)
    devices.refuse_other_cluster(stash_of(at_the_lost_site(image)), image.spec)
    assert devices.revived(image.stash(image.handle, "rbd-nbd"), image) is None


def test_what_was_kept_of_the_lost_sites_device_is_not_replaced(nbd_kernel: NbdKernel, image: NodeImage) -> None:
    own = at_the_lost_site(image)
    attach(nbd_kernel, own, is_alive=True)
    _, devices = volumes_on(nbd_kernel)
    stash = image.stash(image.handle, "rbd-nbd")
    with pytest.raises(DeviceInUse, match=REFUSAL):
        devices.keep(stash, image.attach_request(read_only=False, mounter="rbd-nbd"))
    assert nbd_kernel.kept.find_volume(image.handle) == own
