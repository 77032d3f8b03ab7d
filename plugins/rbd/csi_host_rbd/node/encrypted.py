"""The devices of encrypted volumes: what an attacher makes, and LUKS on top of it.

The kernel's attachers show the image as it is, and dm-crypt shows what is encrypted on it. An attacher that opens LUKS
itself (``OpensLuks``) does so always, also where the kernel has dm-crypt: then the mounter alone says what a device is,
an unstage need not find out, and such a node needs no module. The header is the same, so the next node may be of the
other kind.

What a failure leaves, and who mends it:

* the process dies between the attacher's device and the mapping: the retry finds the device, opens it, goes on;
* it dies while the header is written: see encryption/first_use.py;
* the image was attached anew as another device, below a mapping that is left: it is closed first, see mappings.py;
* two nodes are the first to use a volume at once: each attaches, then looks who else has, and leaves it to the other;
* the KMS does not answer: a volume whose mapping is there needs no passphrase; any other stage is asked again;
* an unstage is cut off: the mapping goes first, then the attacher's device; each is looked for again.
"""

from collections.abc import Callable
from dataclasses import replace

from csi_host.errors import FailedPrecondition
from csi_host.kms import Passphrase
from csi_host.process import Runner
from csi_host_common_node.filesystem import Filesystems
from csi_host_rbd.attach.attacher import (
    Attacher,
    Attachment,
    AttachmentLost,
    AttachRequest,
    FeaturesNotSupported,
    OpensLuks,
)
from csi_host_rbd.attach.storage_daemon import ImageNotOpened
from csi_host_rbd.encryption.first_use import NotEncryptedYet, ensure_header, needs_header, note_header
from csi_host_rbd.encryption.luks import Luks, refused
from csi_host_rbd.encryption.mappings import Mapping, Mappings
from csi_host_rbd.errors import VolumeInUse
from csi_host_rbd.features import Feature
from csi_host_rbd.node.image import NodeImage
from csi_host_rbd.node.stash import Stash

Ready = Callable[[], None]


class HeaderNotServed(FailedPrecondition):
    """The header is one that this mounter does not open."""


class EncryptedDevices:
    """Devices that show what is encrypted; ``mappings`` are dm-crypt's."""

    def __init__(self, run: Runner, *, luks: Luks, mappings: Mappings | None = None) -> None:
        self._luks = luks
        self._filesystems = Filesystems(run)
        self._mappings = mappings or Mappings(self._luks)

    def check(self, attacher: Attacher, volume_id: str) -> None:
        """Raise FailedPrecondition naming what this machine lacks; touches nothing."""
        if isinstance(attacher, OpensLuks):
            self._luks.check()
        else:
            self._mappings.check(volume_id)

    def check_features(self, attacher: Attacher, features: int) -> None:
        """Raise FeaturesNotSupported for an image that this attacher could attach, and not open."""
        if isinstance(attacher, OpensLuks) and features & Feature.JOURNALING:
            raise FeaturesNotSupported(
                f"librbd opens no LUKS on an image with journaling, so the mounter {attacher.name} cannot: disable "
                "that (rbd feature disable; an image can be mirrored by snapshots), or set mounter: rbd-nbd"
            )

    def find(self, attacher: Attacher, stash: Stash) -> Attachment | None:
        """Return the device that shows what is encrypted, None when there is none."""
        below = attacher.find(stash.spec)
        if isinstance(attacher, OpensLuks):
            return below
        mapping = self._mappings.find(stash.volume_id)
        if mapping is None:
            return None
        is_alive = below is not None and below.is_alive and _is_sound(mapping, below)
        return Attachment(device=mapping.device, read_only=mapping.read_only, is_alive=is_alive)

    def attach(
        self, attacher: Attacher, stash: Stash, image: NodeImage, request: AttachRequest, make_ready: Ready
    ) -> str:
        """Return the device that shows what is encrypted; the image gets its header if it has none yet.

        ``make_ready`` takes a dead device away and returns when nobody else uses the image.
        """
        if isinstance(attacher, OpensLuks):
            return self._open_by_attacher(attacher, stash, image, request, make_ready)
        below = self._find_usable(attacher, stash, request)
        if below is None:
            make_ready()
            below = attacher.attach(request)
        if needs_header(image):
            self._give_header(image, request, below.device)
            note_header(image)
        existing = self._mappings.find(stash.volume_id)
        if existing is None or not _is_sound(existing, below):
            mapping = self._mappings.opened(
                stash.volume_id, below.device, image.passphrase(), read_only=request.read_only
            )
            return mapping.device
        if not existing.read_only:
            attacher.grow(stash.spec)
            self._mappings.resize(stash.volume_id)
        return existing.device

    def detach(self, stash: Stash) -> None:
        """Take away what is on top of the attacher's device; fine when there is nothing. Raises DeviceInUse."""
        self._mappings.close(stash.volume_id)

    def stack_at(self, device: str) -> tuple[str, ...]:
        """Return the devices that make up a device, topmost first: of a mapping also what is below, else it alone."""
        mapping = self._mappings.at(device)
        return (device,) if mapping is None else (device, *mapping.below)

    def stack_of(self, volume_id: str) -> tuple[str, ...]:
        """Return the volume's mapping and what is below it, topmost first; empty when it has no mapping."""
        mapping = self._mappings.find(volume_id)
        return () if mapping is None else (mapping.device, *mapping.below)

    def close_at(self, device: str) -> bool:
        """Take a mapping away, but not what is below; False for any other device. Raises DeviceInUse."""
        return self._mappings.close_at(device)

    def grow(self, attacher: Attacher, stash: Stash) -> None:
        """Have the device show all that the attacher's device shows by now; raises AttachmentLost."""
        if isinstance(attacher, OpensLuks):
            return
        if self._mappings.find(stash.volume_id) is None:
            raise AttachmentLost(f"volume {stash.volume_id} is not opened here any more; stage it again")
        self._mappings.resize(stash.volume_id)

    def _find_usable(self, attacher: Attacher, stash: Stash, request: AttachRequest) -> Attachment | None:
        """Return the attacher's device if it will do; otherwise see to it that nothing is left on top of it."""
        below = attacher.find(stash.spec)
        if below is not None and below.is_alive and below.read_only == request.read_only:
            return below
        self._mappings.close(stash.volume_id)
        return None

    def _open_by_attacher(
        self, attacher: OpensLuks, stash: Stash, image: NodeImage, request: AttachRequest, make_ready: Ready
    ) -> str:
        found = attacher.find(stash.spec)
        if found is not None and found.is_alive and found.read_only == request.read_only:
            if not request.read_only:
                attacher.grow(stash.spec)
            return found.device
        make_ready()
        if needs_header(image):
            with attacher.bare(request) as device:
                self._give_header(image, request, device)
            note_header(image)
        _refuse_first_version(image, attacher.name)
        passphrase = image.passphrase()
        try:
            return attacher.attach(replace(request, passphrase=passphrase)).device
        except ImageNotOpened:
            self._refuse_passphrase(attacher, image, request, passphrase)
            raise

    def _give_header(self, image: NodeImage, request: AttachRequest, device: str) -> None:
        if image.is_static or request.read_only:
            why = "was made by an administrator (staticVolume)" if image.is_static else "is wanted read-only"
            raise NotEncryptedYet(f"the volume has no LUKS header and {why}, so none is written here")
        _refuse_others(image)
        ensure_header(self._luks, self._filesystems, device, image, image.passphrase())

    def _refuse_passphrase(
        self, attacher: OpensLuks, image: NodeImage, request: AttachRequest, passphrase: Passphrase
    ) -> None:
        with attacher.bare(request) as device:
            if not self._luks.accepts(device, passphrase):
                raise refused(f"image {image.spec}")


def _refuse_others(image: NodeImage) -> None:
    """Raise VolumeInUse when somebody else has the image open; asked when our own device is there and is seen so too.

    Of two nodes that use a new volume at once, as they may with a block volume for many, at most one goes on.
    """
    with image.opened() as opened:
        allowed = 1 + (image.mirror_daemon_count if opened.mirroring().is_enabled else 0)
        watchers = opened.watchers()
    if len(watchers) > allowed:
        names = ", ".join(str(watcher) for watcher in watchers)
        raise VolumeInUse(f"image {image.spec} is to get its LUKS header, and is used by more than this node: {names}")


def _is_sound(mapping: Mapping, below: Attachment) -> bool:
    return mapping.below == (below.device,) and mapping.read_only == below.read_only and not mapping.is_suspended


def _refuse_first_version(image: NodeImage, mounter: str) -> None:
    header = image.luks_header()
    if header is not None and header.version == 1:
        raise HeaderNotServed(
            f"image {image.spec} has a LUKS header of version 1, which the mounter {mounter} does not open; use a "
            "mounter of the kernel (rbd, rbd-nbd)"
        )
