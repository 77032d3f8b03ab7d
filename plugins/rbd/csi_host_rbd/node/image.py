"""The image behind a volume that a node is asked to stage."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from csi_host.errors import FailedPrecondition
from csi_host.kms import Passphrase
from csi_host_common_node.filesystem import BlankProof, Filesystems
from csi_host_rbd.attach.attacher import AttachRequest, ImageSpec
from csi_host_rbd.backend import Cluster
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.image import Image, open_image
from csi_host_rbd.credentials import Credentials
from csi_host_rbd.encryption.first_use import prove_unused
from csi_host_rbd.encryption.keys import Keys
from csi_host_rbd.encryption.luks_header import LuksHeader, read_header
from csi_host_rbd.map_wishes import MapWishes
from csi_host_rbd.node.marks import MARK_KEY
from csi_host_rbd.node.requests import attach_request, has_log
from csi_host_rbd.node.stash import Stash


@dataclass(frozen=True, kw_only=True)
class NodeImage:
    """An image to stage, with what the volume's context says of it.

    ``is_static`` is a volume that an administrator made: it is never formatted.
    ``mkfs_options`` "" are the defaults. ``handle`` is the volume's; ``keys`` have its passphrase, None where nothing
    is encrypted.
    """

    cluster: Cluster
    pool: Pool
    name: str
    credentials: Credentials
    is_static: bool = False
    mounter: str = ""
    mkfs_options: str = ""
    handle: str
    keys: Keys | None = None
    wishes: MapWishes = field(default_factory=MapWishes)

    @property
    def is_encrypted(self) -> bool:
        """Whether what is on the image is encrypted."""
        return self.keys is not None

    @property
    def spec(self) -> ImageSpec:
        """What attachers call it."""
        return ImageSpec(
            cluster_id=self.cluster.config.cluster_id,
            pool=self.pool.name,
            namespace=self.pool.namespace,
            image=self.name,
            volume_id=self.handle,
            fsid=self.cluster.connection.fsid,
        )

    @property
    def mirror_daemon_count(self) -> int:
        """How many watchers a mirrored image has of mirroring itself."""
        return self.cluster.config.mirror_daemon_count

    def attach_request(self, *, read_only: bool, mounter: str) -> AttachRequest:
        """Return what attaching it through ``mounter`` takes."""
        request = attach_request(self.spec, mounter, self.cluster.config, self.credentials, self.wishes)
        return replace(request, read_only=read_only)

    def stash(self, volume_id: str, mounter: str) -> Stash:
        """Return what has to be known of it when there are no secrets at hand."""
        return Stash(
            pool=self.pool.name,
            namespace=self.pool.namespace,
            image=self.name,
            cluster_id=self.cluster.config.cluster_id,
            volume_id=volume_id,
            mounter=mounter,
            fsid=self.cluster.connection.fsid,
            unmap_options=self.wishes.unmap_options.get(mounter, ""),
            encrypted=self.is_encrypted,
            log_directory=self.wishes.log_directory if has_log(mounter, self.wishes) else "",
            log_strategy=self.wishes.log_strategy if has_log(mounter, self.wishes) else "",
        )

    @contextmanager
    def opened(self) -> Iterator[Image]:
        """Yield the open image, read-only, which registers no watch."""
        with open_image(self.pool, name=self.name, read_only=True) as image:
            yield image

    def allocated_extents(self) -> list[tuple[int, int]]:
        """Return the (offset, length) in bytes of everything that was ever written."""
        with self.opened() as image:
            return image.allocated_extents()

    def prove_blank(self, filesystems: Filesystems, device: str) -> BlankProof:
        """Return the proof that nothing is on the ``device`` that shows this image, opened if it is encrypted."""
        if self.is_encrypted:
            return prove_unused(filesystems, device, self)
        return filesystems.prove_blank(device, self.allocated_extents())

    def read_mark(self) -> str | None:
        """Return the mark that says whether the image has been formatted."""
        return self.metadata().get(MARK_KEY)

    def write_mark(self, text: str) -> None:
        """Replace the mark; it is on the cluster when this returns."""
        self.write_metadata(MARK_KEY, text)

    def metadata(self) -> dict[str, str]:
        """Return all metadata."""
        with self.opened() as image:
            return image.metadata()

    def write_metadata(self, name: str, value: str | None) -> None:
        """Replace one key of the metadata, or remove it; it is on the cluster when this returns."""
        with open_image(self.pool, name=self.name) as image:
            if value is None:
                image.remove_metadata(name)
            else:
                image.set_metadata(name, value)

    def passphrase(self) -> Passphrase:
        """Return the passphrase of an encrypted volume; raises PassphraseNotFound, PassphraseUnreadable."""
        return self._required_keys().passphrase(self.metadata(), self.handle)

    def check_replaceable(self) -> None:
        """Raise PassphraseCannotChange when the KMS cannot replace the volume's passphrase."""
        self._required_keys().check_replaceable()

    def replace_passphrase(self, passphrase: Passphrase, *, known: Passphrase) -> None:
        """Have the KMS keep another passphrase in place of the known one; both open the header."""
        with open_image(self.pool, name=self.name) as image:
            self._required_keys().replace(image, self.handle, passphrase, known=known)

    def luks_header(self) -> LuksHeader | None:
        """Return the LUKS header that the image has, None when it has none that is whole."""
        with self.opened() as image:
            return read_header(image.read)

    def read_edges(self, start: int, length: int) -> list[bytes]:
        """Return the ``length`` bytes at ``start``, and the last ones of the image."""
        with self.opened() as image:
            return [image.read(start, length), image.read(max(start, image.size_bytes - length), length)]

    def _required_keys(self) -> Keys:
        if self.keys is None:
            raise FailedPrecondition(f"volume {self.handle} is not encrypted")
        return self.keys
