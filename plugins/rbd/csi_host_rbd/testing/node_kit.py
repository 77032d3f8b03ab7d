"""A volume on a node as kubelet has it: its paths and its calls, over a real socket."""

import hashlib
import json
import os
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from csi_host.proto import csi_pb2
from csi_host_rbd.node.image import NodeImage
from csi_host_rbd.testing.machine import Machine
from csi_host_rbd.testing.rig import RbdRig, mounted

GIB = 1024**3
MIB = 1024**2
# A call's deadline; a machine without KVM needs a longer one.
SECONDS = float(os.environ.get("CSI_HOST_TEST_CALL_SECONDS", "90"))

# Fixtures that are functions: the code and words a call is refused with; an image opened by another client.
Refused = Callable[..., AbstractContextManager[None]]
ImageOf = Callable[..., AbstractContextManager[Any]]
MakeNodeImage = Callable[..., NodeImage]
# A function that says whether a volume's image still is what it was; a shell script put before a real program.
Unchanged = Callable[["Kit"], Callable[[], bool]]
FakeProgram = Callable[[str, str], None]


@dataclass(frozen=True, kw_only=True)
class Kit:
    """A volume on a node: kubelet's paths and kubelet's calls, over a real socket."""

    rig: RbdRig
    directory: Path
    volume: csi_pb2.Volume
    capability: csi_pb2.VolumeCapability

    @property
    def staging(self) -> Path:
        """The staging directory."""
        return self.directory / "plugins" / hashlib.sha256(self.volume.volume_id.encode()).hexdigest() / "globalmount"

    @property
    def staged(self) -> Path:
        """What the volume is mounted on in it."""
        return self.staging / self.volume.volume_id

    def target(self, name: str = "pod") -> Path:
        """The target path of a pod."""
        return self.directory / "pods" / name / "mount"

    @property
    def image(self) -> str:
        """The name of the image."""
        return self.volume.volume_context["imageName"]

    def stage(self, *, timeout: float = SECONDS, **changes: Any) -> None:
        """Call NodeStageVolume, the directory being there as kubelet makes it."""
        self.staging.mkdir(parents=True, exist_ok=True)
        fields: dict[str, Any] = {
            "volume_id": self.volume.volume_id,
            "staging_target_path": str(self.staging),
            "volume_capability": self.capability,
            "volume_context": self.volume.volume_context,
            "secrets": self.rig.secrets,
        }
        self.rig.served.node.NodeStageVolume(csi_pb2.NodeStageVolumeRequest(**(fields | changes)), timeout=timeout)

    def unstage(self, **changes: Any) -> None:
        """Call NodeUnstageVolume."""
        fields: dict[str, Any] = {"volume_id": self.volume.volume_id, "staging_target_path": str(self.staging)}
        self.rig.served.node.NodeUnstageVolume(csi_pb2.NodeUnstageVolumeRequest(**(fields | changes)), timeout=SECONDS)

    def publish(self, name: str = "pod", **changes: Any) -> Path:
        """Call NodePublishVolume and return the target."""
        target = self.target(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        fields: dict[str, Any] = {
            "volume_id": self.volume.volume_id,
            "staging_target_path": str(self.staging),
            "target_path": str(target),
            "volume_capability": self.capability,
            "volume_context": self.volume.volume_context,
        }
        self.rig.served.node.NodePublishVolume(csi_pb2.NodePublishVolumeRequest(**(fields | changes)), timeout=SECONDS)
        return target

    def unpublish(self, name: str = "pod") -> None:
        """Call NodeUnpublishVolume."""
        request = csi_pb2.NodeUnpublishVolumeRequest(
            volume_id=self.volume.volume_id, target_path=str(self.target(name))
        )
        self.rig.served.node.NodeUnpublishVolume(request, timeout=SECONDS)

    def expand(self, size_bytes: int, **changes: Any) -> int:
        """Ask the node to show a size, as kubelet does after the controller has grown the image."""
        fields: dict[str, Any] = {
            "volume_id": self.volume.volume_id,
            "volume_path": str(self.target()),
            "staging_target_path": str(self.staging),
            "capacity_range": csi_pb2.CapacityRange(required_bytes=size_bytes),
            "volume_capability": self.capability,
        }
        request = csi_pb2.NodeExpandVolumeRequest(**(fields | changes))
        return self.rig.served.node.NodeExpandVolume(request, timeout=SECONDS).capacity_bytes

    def grow_image(self, size_bytes: int) -> None:
        """Have the controller grow the image."""
        self.rig.expand(self.volume.volume_id, size_bytes)

    def stats(self, name: str = "pod") -> csi_pb2.NodeGetVolumeStatsResponse:
        """Call NodeGetVolumeStats for a pod's target."""
        request = csi_pb2.NodeGetVolumeStatsRequest(
            volume_id=self.volume.volume_id, volume_path=str(self.target(name)), staging_target_path=str(self.staging)
        )
        return self.rig.served.node.NodeGetVolumeStats(request, timeout=SECONDS)

    def metadata(self) -> dict[str, str]:
        """Return the metadata of the image, as rbd shows it."""
        return dict(json.loads(self.rig.pool.rbd("image-meta", "ls", self.image, "--format", "json") or "{}"))

    def watchers(self) -> int:
        """Return how many clients have the image open."""
        return len(json.loads(self.rig.pool.rbd("status", self.image, "--format", "json"))["watchers"])

    def loop(self) -> str:
        """Return the loop device."""
        (device,) = Machine(directory=self.directory).loops()
        return device


@dataclass(frozen=True, kw_only=True)
class Node:
    """The rbd driver on a node of its own, with the volumes that a test has made."""

    rig: RbdRig
    directory: Path
    kits: list[Kit] = field(default_factory=list)

    def make_volume(
        self, capability: csi_pb2.VolumeCapability | None = None, *, size_bytes: int = GIB, **parameters: str
    ) -> Kit:
        """Make a volume through the controller."""
        wanted = capability or mounted(fs_type="ext4")
        volume = self.rig.create(
            f"pvc-{uuid.uuid4()}",
            capacity_range=csi_pb2.CapacityRange(required_bytes=size_bytes),
            volume_capabilities=[mounted()],
            parameters=self.rig.parameters(**parameters),
        )
        return self.kit_for(volume, wanted)

    def kit_for(self, volume: csi_pb2.Volume, capability: csi_pb2.VolumeCapability) -> Kit:
        """Return the calls for a volume, which is taken away after the test."""
        kit = Kit(rig=self.rig, directory=self.directory, volume=volume, capability=capability)
        self.kits.append(kit)
        return kit

    @property
    def machine(self) -> Machine:
        """What the node has left on this machine."""
        return Machine(directory=self.directory)

    def clear(self) -> None:
        """Take every volume away as kubelet would, and raise AssertionError when anything stays behind."""
        for kit in self.kits:
            for target in self.directory.glob("pods/*"):
                kit.unpublish(target.name)
            kit.unstage()
            if kit.staging.exists() and (left := list(kit.staging.iterdir())):
                raise AssertionError(f"left behind: {left}")
        self.machine.assert_clean()


def content(image: Any) -> str:
    """Return the checksum of everything in an image."""
    digest = hashlib.sha256()
    for offset in range(0, image.size(), 4 * MIB):
        digest.update(image.read(offset, 4 * MIB))
    return digest.hexdigest()
