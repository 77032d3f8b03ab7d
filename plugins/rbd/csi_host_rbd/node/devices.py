"""From an image to the block device that is mounted, and back."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from csi_host.access import VolumeAccess
from csi_host.process import Runner, run
from csi_host.request import remaining_seconds
from csi_host_rbd.attach.attacher import (
    Attacher,
    Attachment,
    AttachmentLost,
    AttachRequest,
    DeviceInUse,
    ImageSpec,
    OpensLuks,
)
from csi_host_rbd.attach.block_devices import attribute
from csi_host_rbd.attach.nbd_logs import log_file, put_away
from csi_host_rbd.attach.registry import Attachers
from csi_host_rbd.ceph.image import Image
from csi_host_rbd.encryption.luks import Luks
from csi_host_rbd.encryption.mappings import Mappings
from csi_host_rbd.errors import VolumeInUse, VolumeIsSecondary
from csi_host_rbd.node.encrypted import EncryptedDevices
from csi_host_rbd.node.image import NodeImage
from csi_host_rbd.node.stash import Stash

# How long a stage waits for the image's last user to go: a client that died keeps its watch for 30 s.
_IN_USE_SECONDS = 50.0
_SHARE_OF_DEADLINE = 0.8
_FIRST_PAUSE_SECONDS = 1.0
_PAUSE_GROWTH = 1.4


class Devices:
    """The devices of staged volumes; which image one is of, and through which mounter, is in the volume's stash.

    A volume's device is the topmost one, which shows its data: of an encrypted volume what is opened, see encrypted.
    ``pause`` sleeps for a number of seconds.
    """

    def __init__(
        self,
        attachers: Attachers,
        *,
        run: Runner = run,
        pause: Callable[[float], None] = time.sleep,
        mappings: Mappings | None = None,
    ) -> None:
        self._attachers = attachers
        self.luks = Luks(run)
        self._encrypted = EncryptedDevices(run, luks=self.luks, mappings=mappings)
        self._pause = pause

    def mounter_of(self, image: NodeImage) -> str:
        """Return the mounter that the image is to be attached with; raises what says that this node cannot."""
        # Two devices of one image on one node would not see each other's writes.
        attacher = self._attachers.serving(image.spec) or self._chosen(image)
        if image.is_encrypted:
            self._encrypted.check(attacher, image.handle)
        return attacher.name

    def find(self, stash: Stash) -> Attachment | None:
        """Return the volume's device, None when it has none."""
        attacher = self._attachers.named(stash.mounter)
        return self._encrypted.find(attacher, stash) if stash.encrypted else attacher.find(stash.spec)

    def revived(self, stash: Stash, image: NodeImage) -> Attachment | None:
        """Return the volume's device as ``find`` does, with a new server if the old one has died and that can be.

        One whose server lives may be what a call made that was killed before it could keep how, or what ceph-csi made.
        Raises DeviceInUse when the device is another cluster's.
        """
        attacher = self._attachers.named(stash.mounter)
        attacher.refuse_other_cluster(stash.spec)
        below = attacher.find(stash.spec)
        if below is not None:
            request = image.attach_request(read_only=below.read_only, mounter=stash.mounter)
            if below.is_alive:
                attacher.keep(request)
            else:
                attacher.reattach(request)
        return self.find(stash)

    def refuse_other_cluster(self, stash: Stash, spec: ImageSpec) -> None:
        """Raise DeviceInUse when the volume of ``stash`` has a device of another cluster than the image that is wanted.

        What an attacher keeps may be lost; the stash goes only when the volume is unstaged.
        """
        if not stash.spec.is_of_other_cluster(spec):
            return
        device = self._attachers.named(stash.mounter).find(stash.spec) or self.find(stash)
        if device is not None:
            raise DeviceInUse(
                f"{device.device} is still a device here of {stash.spec} of cluster {stash.spec.cluster}, and volume "
                f"{stash.volume_id} is wanted of cluster {spec.cluster}; unstage the volume first"
            )

    def keep(self, stash: Stash, request: AttachRequest) -> None:
        """Have the volume's device, if it has one, get a new server by ``request`` when it needs one.

        Raises DeviceInUse when the device is another cluster's.
        """
        attacher = self._attachers.named(stash.mounter)
        attacher.refuse_other_cluster(request.spec)
        if below := attacher.find(stash.spec):
            attacher.keep(replace(request, read_only=below.read_only))

    def noted(self, stash: Stash) -> Stash:
        """Return the stash with what is known once the device is there; ceph-csi re-attaches by rbd-nbd's device."""
        if stash.mounter != "rbd-nbd":
            return stash
        attachment = self._attachers.named(stash.mounter).find(stash.spec)
        return replace(stash, device=attachment.device) if attachment else stash

    def attach(self, stash: Stash, image: NodeImage, access: VolumeAccess, *, found: Attachment | None) -> str:
        """Return the device with the image on it, made unless ``found`` will do.

        Raises VolumeInUse naming who uses the image elsewhere, VolumeIsSecondary.
        """
        attacher = self._attachers.named(stash.mounter)
        # A filesystem with an unclean journal can be mounted read-only only where the journal can be replayed.
        read_only = access.mode.is_reader_only and (access.is_block or access.mode.is_multi_node)
        request = image.attach_request(read_only=read_only, mounter=attacher.name)

        def make_ready() -> None:
            self._make_ready(attacher, stash, image, is_shared=access.mode.is_multi_node)

        if stash.encrypted:
            return self._encrypted.attach(attacher, stash, image, request, make_ready)
        if found and found.is_alive and found.read_only == read_only:
            if not read_only:
                attacher.grow(stash.spec)
            return found.device
        make_ready()
        return attacher.attach(request).device

    @contextmanager
    def with_header(self, stash: Stash, image: NodeImage) -> Iterator[str]:
        """Yield the device that shows the whole image of an encrypted volume, with its LUKS header, for writing.

        Raises AttachmentLost when the volume has no living device here, and as ``refuse_other_cluster`` does.
        """
        self.refuse_other_cluster(stash, image.spec)
        attacher = self._attachers.named(stash.mounter)
        below = attacher.find(stash.spec)
        if below is None or not below.is_alive:
            raise AttachmentLost(f"volume {stash.volume_id} has no living device here; stage it again")
        if not isinstance(attacher, OpensLuks):
            yield below.device
            return
        with attacher.bare(image.attach_request(read_only=False, mounter=attacher.name)) as device:
            yield device

    def detach(self, stash: Stash) -> None:
        """Take the volume's device away; fine when it has none. Raises DeviceInUse when it is still mounted."""
        if stash.encrypted:
            self._encrypted.detach(stash)
        self._attachers.named(stash.mounter).detach(stash.spec, stash.unmap_options)

    def put_log_away(self, stash: Stash) -> None:
        """Do with the log of what served the volume's device, which is detached, as its class wants it; never fails."""
        if stash.mounter == "rbd-nbd" and stash.log_directory:
            put_away(log_file(stash.log_directory, stash.volume_id), stash.log_strategy)

    def stack_at(self, device: str) -> tuple[str, ...]:
        """Return the devices that make up a device, topmost first, in the order in which they are detached."""
        return self._encrypted.stack_at(device)

    def stack_of(self, volume_id: str) -> tuple[str, ...]:
        """Return the devices that make up the volume's mapping of dm-crypt, topmost first; empty without one."""
        return self._encrypted.stack_of(volume_id)

    def attached(self) -> list[tuple[Attacher, ImageSpec]]:
        """Return all images that have something here, with whose it is; see Attacher.attached."""
        return [(attacher, spec) for attacher in self._attachers for spec in attacher.attached()]

    def detach_device(self, device: str) -> bool:
        """Take a device away of which nothing else is known, but not what is below; fine when it shows nothing.

        It has to be known that it was staged. False when it is none that an attacher makes.
        """
        if self._encrypted.close_at(device) or attribute(device, "size") == "0":
            return True
        return any(attacher.detach_device(device) for attacher in self._attachers)

    def grow(self, stash: Stash, *, at_least: int = 0) -> int:
        """Make the volume's device show the size that the image has now, and return that size; all in bytes."""
        attacher = self._attachers.named(stash.mounter)
        image_bytes = attacher.grow(stash.spec, at_least=at_least)
        if stash.encrypted:
            self._encrypted.grow(attacher, stash)
        return image_bytes

    def _chosen(self, image: NodeImage) -> Attacher:
        with image.opened() as opened:
            features = opened.features
        attacher = self._attachers.choose(image.mounter, features, try_others=image.wishes.try_other_mounters)
        if image.is_encrypted:
            self._encrypted.check_features(attacher, features)
        return attacher

    def _make_ready(self, attacher: Attacher, stash: Stash, image: NodeImage, *, is_shared: bool) -> None:
        """Return when the image has no device here, and nobody else uses it who should not."""
        # A daemon that an earlier call left half made would count as somebody who uses the image.
        attacher.detach(stash.spec, stash.unmap_options)
        with image.opened() as opened:
            _refuse_secondary(opened, image)
            if not is_shared:
                self._wait_until_unused(opened, image)

    def _wait_until_unused(self, opened: Image, image: NodeImage) -> None:
        """Wait for others to let go of the image, as long as the caller can wait; raises VolumeInUse naming them."""
        allowed = image.mirror_daemon_count if opened.mirroring().is_enabled else 0
        left = remaining_seconds()
        patience = _IN_USE_SECONDS if left is None else min(_IN_USE_SECONDS, left * _SHARE_OF_DEADLINE)
        until, pause = time.monotonic() + patience, _FIRST_PAUSE_SECONDS
        while len(watchers := opened.watchers()) > allowed:
            if time.monotonic() + pause > until:
                names = ", ".join(str(watcher) for watcher in watchers)
                raise VolumeInUse(f"image {image.spec} is still being used by {names}; waited {patience:.0f} s")
            self._pause(pause)
            pause *= _PAUSE_GROWTH


def _refuse_secondary(opened: Image, image: NodeImage) -> None:
    mirroring = opened.mirroring()
    if mirroring.is_enabled and not mirroring.is_primary:
        raise VolumeIsSecondary(f"image {image.spec} is a mirror's copy here; it is written in its primary cluster")
