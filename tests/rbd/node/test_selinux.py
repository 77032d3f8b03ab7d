"""SELinux contexts of volumes; this machine has no SELinux, so what the kernel would show is made up."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from csi_host.access import AccessMode, VolumeAccess
from csi_host.errors import AlreadyExists, FailedPrecondition
from csi_host.node.mounts import Mount, mount_at
from csi_host.process import run
from csi_host_rbd.attach.registry import Attachers
from csi_host_rbd.node.devices import Devices
from csi_host_rbd.node.staged import refuse_otherwise
from csi_host_rbd.node.staging import Staging
from csi_host_rbd.node.volumes import NodeVolumes
from csi_host_rbd.testing.node_kit import Node
from csi_host_rbd.testing.rig import mounted

pytestmark = [pytest.mark.ceph, pytest.mark.root]


def labelled(*super_options: str) -> Mount:
    mount = mount_at("/")
    assert mount is not None
    return Mount(**{**vars(mount), "fs_type": "ext4", "options": ("rw",), "super_options": super_options})


def asking(*flags: str) -> VolumeAccess:
    return VolumeAccess(mode=AccessMode.SINGLE_NODE_WRITER, is_block=False, fs_type="ext4", mount_flags=flags)


OTHERWISE = [
    (("rw", 'context="system_u:object_r:t:s0:c1,c2"'), 'context="system_u:object_r:t:s0:c3,c4"'),
    (("rw", 'context="system_u:object_r:t:s0:c1.c3"'), 'context="system_u:object_r:t:s0:c1,c3"'),
    (("rw", "context=system_u:object_r:t:s0"), "context=system_u:object_r:u:s0"),
    (("rw", "seclabel"), "context=system_u:object_r:t:s0"),
]
ALIKE = [
    (("rw", 'context="system_u:object_r:t:s0:c1,c2"'), 'context="system_u:object_r:t:s0:c1,c2"'),
    # The kernel has an order and a shorthand of its own.
    (("rw", 'context="system_u:object_r:t:s0:c2,c10"'), 'context="system_u:object_r:t:s0:c10,c2"'),
    (("rw", 'context="system_u:object_r:t:s0:c1.c3,c7"'), 'context="system_u:object_r:t:s0:c7,c3,c2,c1"'),
    (("rw", "context=system_u:object_r:t:s0"), "noatime"),
    # A machine without SELinux mounts without the context and shows none.
    (("rw",), "context=system_u:object_r:t:s0"),
]


@pytest.mark.parametrize(("shown", "asked"), OTHERWISE)
def test_a_volume_has_one_selinux_context_at_a_time(shown: tuple[str, ...], asked: str) -> None:
    with pytest.raises(AlreadyExists, match=r"volume x .* context system_u:object_r:"):
        refuse_otherwise(labelled(*shown), asking("noatime", asked), "volume x")


@pytest.mark.parametrize(("shown", "asked"), ALIKE)
def test_a_context_that_is_the_same_in_other_words_is_no_other(shown: tuple[str, ...], asked: str) -> None:
    refuse_otherwise(labelled(*shown), asking("noatime", asked), "volume x")


@dataclass(frozen=True, kw_only=True)
class LabelledStaging(Staging):
    """A staging directory with a mount as SELinux would show it, which this machine need not have."""

    shown: tuple[str, ...]

    def mount(self) -> Mount:
        return labelled(*self.shown)


def publish(directory: Path, shown: tuple[str, ...], asked: str, *, target: Path) -> None:
    staging = LabelledStaging(directory=directory, volume_id="x", shown=shown)
    volumes = NodeVolumes(run=run, devices=Devices(Attachers((), default="")))
    volumes.publish(staging, target, asking(asked), read_only=False)


@pytest.mark.parametrize(("shown", "asked"), OTHERWISE)
def test_another_selinux_context_than_the_staged_one_is_not_published(
    directory: Path, shown: tuple[str, ...], asked: str
) -> None:
    with pytest.raises(FailedPrecondition, match=r"volume x is staged with .* cannot become the context"):
        publish(directory, shown, asked, target=directory / "target")
    assert not (directory / "target").exists()
    # What is published already is there in another way.
    with pytest.raises(AlreadyExists, match=r"volume x is published and is staged with .* cannot become the context"):
        publish(directory, shown, asked, target=Path("/proc"))


@pytest.mark.parametrize(("shown", "asked"), ALIKE)
def test_the_staged_selinux_context_is_no_reason_to_refuse(directory: Path, shown: tuple[str, ...], asked: str) -> None:
    # Nothing is mounted in truth, which is what is looked at next.
    with pytest.raises(FailedPrecondition, match="nothing is mounted"):
        publish(directory, shown, asked, target=directory / "target")


def test_a_selinux_context_is_for_staging_and_no_bind_mount_repeats_it(node: Node) -> None:
    capability = mounted(fs_type="ext4")
    capability.mount.mount_flags.extend(["noatime", 'context="system_u:object_r:t:s0:c1,c2"'])
    kit = node.make_volume(capability)
    kit.stage()
    mount = mount_at(kit.publish())
    assert mount is not None
    assert "noatime" in mount.options
    kit.stage()
