"""The LUKS header of an encrypted volume: written when a node uses the volume first, and never again.

The image's metadata has the state: ``encryptionPrepared`` since the volume was made, ``encrypted`` once there is a
header. Between the two stands our own mark, ``csi-host/luks`` = ``formatting``, as a cut-off luksFormat leaves bytes
that nobody can tell from data: it fills the header's area with noise before it writes the header, and the header is
there for a moment before its first passphrase is.

A header is written only at ``encryptionPrepared``, on an image that has no mark of a filesystem, and when

* the image is proven blank (no signature, every allocated byte reads as zero), or
* the mark says that a luksFormat of ours was cut off, nothing was ever allocated behind the header's area, and there
  is no header that has a passphrase: then nobody ever had a device on which data could have been written.

Everything else is an error that says what was found, and nothing is touched. What a crash leaves, and who mends it:

* after the mark: the image is blank still, or holds a part of a header without a passphrase: written anew;
* after luksFormat: there is a header that the passphrase opens: only the state is set;
* after the state, before the mark is removed: the mark means nothing at ``encrypted``, and goes with the next staging;
* a clone that was made in between has a copy of all of this and is treated alike.
"""

from collections.abc import Iterable, Mapping
from typing import Protocol

from csi_host.errors import FailedPrecondition
from csi_host.kms import Passphrase
from csi_host_common_node.filesystem import BlankProof, Filesystems, Has
from csi_host_rbd.encryption.luks import Luks, refused
from csi_host_rbd.encryption.luks_header import LuksHeader
from csi_host_rbd.encryption.state import STATE, EncryptionState, read_state
from csi_host_rbd.node.marks import MARK_KEY

LUKS_MARK = "csi-host/luks"
_FORMATTING = "formatting"
_LUKS = "crypto_LUKS"
# Where the data of a header made with ceph-csi's parameters begins, at the least.
_HEADER_BYTES = 16 * 1024**2
_EDGE_BYTES = 1024**2


class NotEncryptedYet(FailedPrecondition):
    """The image has no LUKS header, and must not be given one; the message says why."""


class HeaderMissing(FailedPrecondition):
    """The image counts as encrypted, and has no LUKS header that is whole."""


class DataWithoutSignature(FailedPrecondition):
    """Something was written to an encrypted volume on which no filesystem is recognized; it is never formatted."""


class EncryptedImage(Protocol):
    """An encrypted image: its metadata, its header, and what is allocated of it."""

    def metadata(self) -> Mapping[str, str]:
        """Return all metadata."""
        ...

    def write_metadata(self, name: str, value: str | None) -> None:
        """Replace one key, or remove it; it is on the cluster when this returns."""
        ...

    def luks_header(self) -> LuksHeader | None:
        """Return the LUKS header that the image has, None when it has none that is whole."""
        ...

    def allocated_extents(self) -> Iterable[tuple[int, int]]:
        """Return the (offset, length) in bytes of everything that was ever written."""
        ...

    def read_edges(self, start: int, length: int) -> Iterable[bytes]:
        """Return the ``length`` bytes at ``start``, and the last ones of the image."""
        ...


def needs_header(image: EncryptedImage) -> bool:
    """Whether the image is still to be given its LUKS header; raises HeaderMissing where there should be one.

    Also when it has none of the states: then it is no encrypted volume, whatever else is said of it.
    """
    state = read_state(image.metadata())
    if state is EncryptionState.PREPARED:
        return True
    if state is None:
        raise NotEncryptedYet(
            f"the volume is an encrypted one, but its image has no state of encryption (image metadata {STATE}); it is "
            "left as it is"
        )
    if image.luks_header() is None:
        raise HeaderMissing(
            "the image is marked as encrypted, but no LUKS header on it is whole; it is left as it is, as a new one "
            "would make its data unreadable for ever. Look at it with cryptsetup luksDump and cryptsetup repair; a "
            "backup of the header can be restored with cryptsetup luksHeaderRestore"
        )
    return False


def ensure_header(
    luks: Luks, filesystems: Filesystems, device: str, image: EncryptedImage, passphrase: Passphrase
) -> None:
    """Give the image on ``device`` its LUKS header, unless it has one that the passphrase opens; see the module.

    ``device`` shows the whole image. The state is to be set by ``note_header`` when all this is in the image.
    """
    content = filesystems.content_of(device)
    header = image.luks_header()
    if header is not None and header.has_passphrases:
        if not luks.accepts(device, passphrase):
            raise refused(device)
        return
    metadata = image.metadata()
    _refuse_marked(metadata)
    if metadata.get(LUKS_MARK) == _FORMATTING:
        _refuse_used(device, content, image)
    else:
        filesystems.prove_blank(device, image.allocated_extents())
        image.write_metadata(LUKS_MARK, _FORMATTING)
    luks.format(device, passphrase)


def note_header(image: EncryptedImage) -> None:
    """Note that the image has its LUKS header: from here on it is never given another."""
    metadata = image.metadata()
    if metadata.get(STATE) != EncryptionState.ENCRYPTED:
        image.write_metadata(STATE, EncryptionState.ENCRYPTED)
    if LUKS_MARK in metadata:
        image.write_metadata(LUKS_MARK, None)


def prove_unused(filesystems: Filesystems, device: str, image: EncryptedImage) -> BlankProof:
    """Return the proof that the opened ``device`` of an encrypted image may be formatted.

    A device that dm-crypt shows never reads as zeros, so what counts is below: behind the header nothing was ever
    allocated, and both ends of it read as zeros. Raises DataWithoutSignature, DeviceNotBlank, DeviceUnclear.
    """
    header = image.luks_header()
    if header is None:
        raise HeaderMissing(f"{device}: the image has no LUKS header that is whole any more; it is left as it is")
    _refuse_allocated(device, image, behind=header.data_offset)
    if any(edge.strip(b"\0") for edge in image.read_edges(header.data_offset, _EDGE_BYTES)):
        raise _data_found(device)
    return filesystems.accept_unsigned(device)


def _refuse_marked(metadata: Mapping[str, str]) -> None:
    if MARK_KEY in metadata:
        raise NotEncryptedYet(
            f"the image is marked {metadata[MARK_KEY]!r} from before it was encrypted, and has no LUKS header; it is "
            "left as it is"
        )


def _refuse_used(device: str, content: object, image: EncryptedImage) -> None:
    if isinstance(content, Has) and content.kind != _LUKS:
        raise NotEncryptedYet(
            f"{device} holds {content.kind}, though only a LUKS header was begun there; it is left as it is"
        )
    _refuse_allocated(device, image, behind=_HEADER_BYTES)


def _refuse_allocated(device: str, image: EncryptedImage, *, behind: int) -> None:
    if any(offset + length > behind for offset, length in image.allocated_extents()):
        raise _data_found(device)


def _data_found(device: str) -> DataWithoutSignature:
    return DataWithoutSignature(
        f"{device}: something was written behind the LUKS header although no filesystem is recognized; it is not "
        "formatted. If the data matters, recover it (a damaged filesystem: e2fsck -b, xfs_repair); if it does not, "
        "delete the volume"
    )
