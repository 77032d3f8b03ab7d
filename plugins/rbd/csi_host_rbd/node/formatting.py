"""Putting a filesystem on an image: only where it is proven that nothing is lost by it.

A mark in the image's metadata is a second witness beside the device's own content, whose reading can go wrong:

* no mark: nobody of ours has formatted the image; it is formatted when every allocated byte of it reads as zero;
* ``formatting <type>``, written before mkfs: an mkfs was begun and perhaps cut off, and nobody can have mounted what
  it left, so an image without a signature is formatted again although it is not all zero;
* ``raw``, written in its place when the volume is used as a block device: what is on it then is the user's;
* ``growing <type>``, written between a full check and an offline growth: what is wrong is that growth's doing (see
  growing); otherwise it says as much as the next one;
* ``formatted <type>``, written after mkfs and before the first mount: there is a filesystem, so an image that looks
  blank is never formatted, nor is one with a mark that is none of these.

What has a signature is used as it is, whatever the mark says: after ``formatting`` another driver, which knows no
marks, may have formatted and used it. The one exception is an xfs that says itself that its mkfs was cut off: nobody
can have mounted it.
"""

from typing import Protocol

from csi_host.errors import FailedPrecondition
from csi_host.node.mounts import mounts_of_device
from csi_host_common_node.filesystem import DEFAULT_FS_TYPE, BlankProof, Filesystems, Has, parse_mkfs_options
from csi_host_rbd.node.staged import FILESYSTEMS

_FORMATTING = "formatting"
_RAW = "raw"
_LUKS = "crypto_LUKS"
_LOOK = (
    "Look at what is there (map the image by hand, then wipefs --no-act and blkid --probe): if nothing on it matters, "
    "make it read as zeros by hand (blkdiscard --zeroout) and try again; if it does, choose another image"
)


def formatted(kind: str) -> str:
    """Return the mark of an image with a filesystem of a type."""
    return f"formatted {kind}"


def growing(kind: str) -> str:
    """Return the mark of an image whose filesystem, which is not mounted, is being grown."""
    return f"growing {kind}"


class NotFormatted(FailedPrecondition):
    """The image has no filesystem and must not be given one; the message says why."""


class OtherFilesystem(FailedPrecondition):
    """The image holds something else than the filesystem that was asked for."""


class Marked(Protocol):
    """An image with its mark."""

    def read_mark(self) -> str | None:
        """Return the mark, None when there is none."""
        ...

    def write_mark(self, text: str) -> None:
        """Replace the mark; it is on the cluster when this returns."""
        ...

    def prove_blank(self, filesystems: Filesystems, device: str) -> BlankProof:
        """Return the proof that nothing is on the ``device`` that shows this image; raises what speaks against it."""
        ...


def ensure_filesystem(
    filesystems: Filesystems,
    device: str,
    image: Marked,
    *,
    fs_type: str,
    mkfs_options: str = "",
    never_because: str = "",
) -> str:
    """Return the type of the filesystem on ``device``, made if there is none and nothing speaks against it.

    ``fs_type`` "" takes any of FILESYSTEMS that is there, and ext4 where there is none. ``never_because`` is the
    reason why this volume is never written to by the driver, "" for one that may be. Raises NotFormatted,
    OtherFilesystem, InvalidArgument for ``mkfs_options`` where they are needed, and what the proof fails with.
    """
    content = filesystems.content_of(device)
    if isinstance(content, Has) and not never_because and _erase_unfinished(filesystems, device, image, content):
        content = filesystems.content_of(device)
    if isinstance(content, Has):
        _refuse_other(device, content, fs_type)
        if not never_because:
            _mark_formatted(image, content.kind)
        return content.kind
    if never_because:
        raise NotFormatted(f"the volume has no filesystem and {never_because}")
    # A mark of an mkfs that could never begin would make the next call ask for no proof.
    parse_mkfs_options(mkfs_options, name="volume_context[mkfsOptions]")
    proof = _permission(filesystems, device, image)
    wanted = fs_type or DEFAULT_FS_TYPE
    image.write_mark(f"{_FORMATTING} {wanted}")
    filesystems.format(device, wanted, mkfs_options, proof=proof)
    image.write_mark(formatted(wanted))
    return wanted


def mark_raw(image: Marked) -> None:
    """Note that a volume is handed out as a block device: after that a mkfs that was cut off is no permission."""
    mark = image.read_mark()
    if mark is not None and mark.split(" ")[0] == _FORMATTING:
        image.write_mark(_RAW)


def _erase_unfinished(filesystems: Filesystems, device: str, image: Marked, content: Has) -> bool:
    return (
        content == Has(kind="xfs")
        and image.read_mark() == f"{_FORMATTING} xfs"
        and not mounts_of_device(device)
        and filesystems.erase_unfinished_xfs(device)
    )


def _refuse_other(device: str, content: Has, fs_type: str) -> None:
    if content.kind == fs_type or (not fs_type and content.kind in FILESYSTEMS):
        return
    if content.is_partition_table:
        raise OtherFilesystem(
            f"{device} holds a partition table ({content.kind}), expected a filesystem; it is left as it is. Use the "
            f"volume as a block device (volumeMode: Block). {_LOOK}"
        )
    if content.kind == _LUKS:
        raise OtherFilesystem(
            f"{device} holds a LUKS header ({_LUKS}), expected a filesystem; it is left as it is. If this is an "
            'encrypted volume, it has to be called one (encrypted: "true" and its encryptionKMSID, in the StorageClass '
            "that it is made with or in the volumeAttributes of a static volume); if it is not, look whether the "
            "PersistentVolume names the right image (volumeHandle)"
        )
    if content.kind in FILESYSTEMS:
        raise OtherFilesystem(
            f"fs_type: the volume holds {content.kind}, but {fs_type} was asked for; it is left as it is. Ask for "
            f"{content.kind} (csi.storage.k8s.io/fstype in the StorageClass or fsType of the volume)"
        )
    expected = fs_type or f"one of the filesystems {', '.join(sorted(FILESYSTEMS))}"
    raise OtherFilesystem(f"{device} holds {content.kind}, expected {expected}; it is left as it is. {_LOOK}")


def _mark_formatted(image: Marked, kind: str) -> None:
    if image.read_mark() not in {formatted(kind), growing(kind)}:
        image.write_mark(formatted(kind))


def _permission(filesystems: Filesystems, device: str, image: Marked) -> BlankProof:
    mark = image.read_mark()
    if mark is None:
        return image.prove_blank(filesystems, device)
    if mark.split(" ")[0] == _FORMATTING:
        return filesystems.accept_unsigned(device)
    raise NotFormatted(
        f"the image is marked {mark!r}, but no filesystem is recognized on {device}: the data may be hidden by a "
        "failure of the storage, or damaged. It is never formatted again. Look at the image (blkid, e2fsck -n, "
        "xfs_repair -n); if nothing on it matters, make it read as zeros and remove the mark (rbd image-meta remove)"
    )
