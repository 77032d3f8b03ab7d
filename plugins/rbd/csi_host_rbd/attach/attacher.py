"""What every way of turning an image into a block device offers."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

from csi_host.errors import Aborted, FailedPrecondition, Unavailable
from csi_host.kms import Passphrase


class DeviceInUse(Aborted):
    """The image's device on this node is mounted and stays as it is; the message says where."""


class AttachmentLost(Unavailable):
    """The image has no device here, or what serves it has died."""


class FeaturesNotSupported(FailedPrecondition):
    """The image has features that this way of attaching does not know; the message names them and what to do."""


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """Which image: ``cluster_id`` is the configuration's, ``namespace`` the RADOS namespace ("" for the default).

    ``volume_id`` and ``fsid`` (the cluster's own id) are "" where they are not known. They do not say which image it
    is, but tell the devices of two clusters apart that have images of the same name.
    """

    cluster_id: str
    pool: str
    image: str
    namespace: str = ""
    volume_id: str = field(default="", compare=False)
    fsid: str = field(default="", compare=False)

    def __str__(self) -> str:
        return "/".join(part for part in (self.pool, self.namespace, self.image) if part)

    @property
    def cluster(self) -> str:
        """What a message calls its cluster."""
        return self.fsid or self.cluster_id or "unknown"

    def is_of_other_cluster(self, other: "ImageSpec") -> bool:
        """Whether it is known that the two are of different clusters: by their own ids, else by the configuration's."""
        if self.fsid and other.fsid:
            return self.fsid != other.fsid
        return bool(self.cluster_id and other.cluster_id) and self.cluster_id != other.cluster_id


@dataclass(frozen=True, kw_only=True)
class AttachRequest:
    """What attaching needs to know; ``mon_host`` in any syntax that Ceph takes.

    ``map_options`` are this mounter's own, separated by commas. ``network_namespace`` is the file of the one through
    which the cluster is reached, None for this process'. ``log_file`` is for a daemon's log, None for none.
    ``passphrase`` is for attachers that open LUKS, see OpensLuks; None shows the image as it is.
    """

    spec: ImageSpec
    mon_host: str
    user: str
    key: str = field(repr=False)
    read_only: bool = False
    map_options: str = ""
    network_namespace: Path | None = None
    log_file: Path | None = None
    passphrase: Passphrase | None = field(repr=False, default=None)


@dataclass(frozen=True, kw_only=True)
class Attachment:
    """A block device on this node that shows an image.

    ``is_alive`` is False when what serves the device has died: its reads and writes fail or wait until it is
    re-attached, where the attacher can do that, or detached.
    """

    device: str
    read_only: bool
    is_alive: bool = True


class Attacher(Protocol):
    """One way of turning images into block devices.

    What is attached is what the kernel (or the daemon) says, never what a file says. The caller holds the volume's
    lock. Every method can be called again after it failed, or after this process died in the middle of it.
    """

    name: ClassVar[str]

    def check(self) -> None:
        """Raise FailedPrecondition naming what this machine lacks; touches nothing."""
        ...

    def check_features(self, features: int) -> None:
        """Raise FeaturesNotSupported when an image with these feature bits cannot be attached in this way."""
        ...

    def attach(self, request: AttachRequest) -> Attachment:
        """Return the image's device, made unless it is there; a dead or half-made one is replaced.

        Raises DeviceInUse when the image is attached otherwise than asked and in use, and as ``refuse_other_cluster``.
        """
        ...

    def find(self, spec: ImageSpec) -> Attachment | None:
        """Return the image's device on this node, None when it has none."""
        ...

    def attached(self) -> list[ImageSpec]:
        """Return the images that have something here, a device or a half-made one; "" where a part is not known."""
        ...

    def refuse_other_cluster(self, spec: ImageSpec) -> None:
        """Raise DeviceInUse when what ``find`` takes for the image's device is known to be another cluster's.

        What one of two sites has not got yet from the page cache of a device would be written into the other one's
        older copy.
        """
        ...

    def reattach(self, request: AttachRequest) -> Attachment | None:
        """Give the image's dead device a new server, below whatever is mounted on it; None where that cannot be.

        Raises as ``refuse_other_cluster`` does.
        """
        ...

    def keep(self, request: AttachRequest) -> None:
        """Remember how the image that is attached here was, for a new server for its device; never fails.

        Nothing to do where no device gets a new one.
        """
        ...

    def detach(self, spec: ImageSpec, options: str = "") -> None:
        """Take the image's device away, all its writes being in the image; nothing to do when there is none.

        ``options`` are this mounter's own for unmapping, separated by commas. Raises DeviceInUse when the device is
        still mounted.
        """
        ...

    def detach_device(self, device: str) -> bool:
        """Detach the image behind a device, as ``detach`` does; False when the device is not this attacher's."""
        ...

    def grow(self, spec: ImageSpec, *, at_least: int = 0) -> int:
        """Make the device show the size that the image has now, and return that size in bytes.

        ``at_least`` is what the caller takes the image to have: a device that follows it by itself is waited for, and
        none is made so long because of it. Raises AttachmentLost when the image has no living device here.
        """
        ...


@runtime_checkable
class OpensLuks(Attacher, Protocol):
    """An attacher that opens an encrypted image by itself, without dm-crypt.

    With a passphrase in the request its device shows what is encrypted, and ``grow`` still tells the size of the image.
    ``attach`` raises ImageNotOpened when the passphrase does not open it.
    """

    def bare(self, request: AttachRequest) -> AbstractContextManager[str]:
        """Show the image as it is, with its LUKS header, as another device for the length of the ``with``.

        For writing, whatever the request says, and beside the device that the image may have; all that was written is
        in the image when the ``with`` ends. What a process that died in it left is taken away by ``detach``.
        """
        ...
