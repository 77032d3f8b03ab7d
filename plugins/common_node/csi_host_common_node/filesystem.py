"""What is on a device, and putting a filesystem on one that is proven to be blank."""

import logging
import os
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from csi_host.errors import FailedPrecondition, Internal, InvalidArgument
from csi_host.node.mounts import StrPath
from csi_host.process import ProcessError, Runner
from csi_host.request import seconds_for
from csi_host_common_node.blank import BlankProof, DeviceNotBlank, identify, read_blank
from csi_host_common_node.patience import DeviceSilent, Patience
from csi_host_common_node.programs import needed_for, require
from csi_host_common_node.reading import DeviceUnclear, read_beginning
from csi_host_common_node.sparse import Extent
from csi_host_common_node.unfinished import erase_unfinished_xfs

__all__ = [
    "Blank",
    "BlankProof",
    "Content",
    "DeviceNotBlank",
    "DeviceSilent",
    "DeviceUnclear",
    "FilesystemDamaged",
    "Filesystems",
    "Has",
]

log = logging.getLogger(__name__)

DEFAULT_FS_TYPE: Final = "ext4"
# No reserved blocks: root is not the one who fills a volume. No discard: a new volume has nothing to discard. The lazy
# ext4 initialization is right on a device that reads as zeros, which is proven before.
_MKFS_OPTIONS: Final = {
    "ext4": ("-m0", "-Enodiscard,lazy_itable_init=1,lazy_journal_init=1"),
    "ext3": ("-m0", "-Enodiscard"),
    "xfs": ("-K",),
    "btrfs": ("-K",),
}
_BLKID_SECONDS = 30.0
_BLKID_FOUND_NOTHING = 2
_PROBE_BY_HAND = (
    "Look whether what serves the device is well (its daemon, its cluster, the kernel's log) and what is on it "
    "(blkid --probe, wipefs --no-act); the volume is tried again"
)
# What changes a device is not killed for an impatient caller: half a mkfs or fsck is worse than a late one.
_CHANGE_SECONDS = 3600.0
# The bits of e2fsck's exit code (e2fsck(8)): 1 and 2 say that it repaired something.
_REPAIRED_AT_MOST = 3
_UNCORRECTED = 4
# It was told to end by a signal, in the middle of its work.
_CANCELED = 32


class FilesystemDamaged(FailedPrecondition):
    """The filesystem has errors that are not repaired without a person's decision."""


@dataclass(frozen=True, kw_only=True)
class Blank:
    """No signature, and the device can be read: not yet a proof that there is no data."""


@dataclass(frozen=True, kw_only=True)
class Has:
    """The device holds a filesystem, an encryption header and the like (``kind`` is blkid's name) or partitions."""

    kind: str
    is_partition_table: bool = False


Content = Blank | Has


class Filesystems:
    """Probes, formats and checks devices with the programs of util-linux, e2fsprogs, xfsprogs and btrfs-progs.

    ``blank_seconds`` is how long the reading of a device may take that is to be proven blank.
    """

    def __init__(
        self,
        run: Runner,
        *,
        blank_seconds: float = 90.0,
        require: Callable[[Iterable[str]], None] = require,
        patience: Patience | None = None,
    ) -> None:
        self._run = run
        self._patience = patience or Patience()
        self._blank_seconds = blank_seconds
        self._require = require

    def content_of(self, device: StrPath) -> Content:
        """Return what blkid finds on ``device``; what is no clear answer raises DeviceUnclear or DeviceSilent."""
        name = os.fspath(device)
        # blkid says "nothing found" also of a device that is missing or cannot be read.
        self._patience.look(name, lambda: read_beginning(name), at_most=_BLKID_SECONDS)
        try:
            argv = ["blkid", "--probe", "--output", "export", "--", name]
            timeout = seconds_for(f"probing {name}", at_most=_BLKID_SECONDS)
            result = self._run(argv, timeout=timeout, ok_codes=(0, _BLKID_FOUND_NOTHING))
        except ProcessError as error:
            raise DeviceUnclear(
                f"{name}: it is not known what is on it, so it stays as it is: {error}. {_PROBE_BY_HAND}"
            ) from error
        return _content(name, result.exit_code, result.stdout)

    def prove_blank(self, device: StrPath, extents: Iterable[Extent] | None = None) -> BlankProof:
        """Return the proof that ``device`` may be formatted: no signature, and nothing but zeros.

        ``extents`` are what the backend has allocated, see ``read_blank``. Raises DeviceNotBlank, DeviceUnclear.
        """
        self._refuse_signature(device)
        seconds = seconds_for(f"reading {os.fspath(device)}", at_most=self._blank_seconds)
        # Slow is told from silent: what is read so far is said by the reader, which gets the time to say it.
        return self._patience.look(
            device, lambda: read_blank(device, extents, seconds=seconds), at_most=seconds + _BLKID_SECONDS
        )

    def accept_unsigned(self, device: StrPath) -> BlankProof:
        """Return the permission to format a device without a signature, whatever else is on it.

        Only for a caller with a record that its own mkfs was cut off there before anything could mount it.
        """
        self._refuse_signature(device)
        return self._identify(device)

    def format(
        self,
        device: StrPath,
        fs_type: str,
        options: str = "",
        *,
        proof: BlankProof | None = None,
        label: str = "",
    ) -> None:
        """Make a filesystem (ext4 if ``fs_type`` is empty) on a device that is proven blank, here or by ``proof``.

        ``options`` are mkfs options in shell words and replace the defaults. Raises InvalidArgument before anything is
        touched, DeviceNotBlank and DeviceUnclear instead of touching it, ProcessError when mkfs failed.
        """
        fs_type = fs_type or DEFAULT_FS_TYPE
        words = _mkfs_words(fs_type, options)
        self._require(needed_for(fs_type))
        if proof is None:
            proof = self.prove_blank(device)
        self._refuse_signature(device)
        if self._identify(device) != proof:
            raise DeviceUnclear(f"{os.fspath(device)} is not the device that was proven blank; it is not formatted")
        words += ["-L", label] if label else []
        words += self._compatible_words(fs_type, words)
        seconds_for(f"formatting {os.fspath(device)}", at_most=_CHANGE_SECONDS)
        self._run([f"mkfs.{fs_type}", *words, "--", os.fspath(device)], timeout=_CHANGE_SECONDS)
        if (content := self.content_of(device)) != Has(kind=fs_type):
            raise Internal(f"{os.fspath(device)}: mkfs.{fs_type} reported success, but the device shows {content}")

    def erase_unfinished_xfs(self, device: StrPath) -> bool:
        """Take away the signature of an xfs that mkfs did not finish; see ``unfinished``."""
        return erase_unfinished_xfs(device, run=self._run, patience=self._patience)

    def check(self, device: StrPath, fs_type: str) -> bool:
        """Repair what can be repaired without a question before an unmounted filesystem is mounted.

        ext3 and ext4 only: xfs and btrfs replay their logs when they are mounted. False when e2fsck could not look at
        it, as it is mounted where we do not see it or is too new for this e2fsck: the mount decides then, and whoever
        would change it unmounted must not. Raises FilesystemDamaged, and ProcessError when e2fsck was ended.
        """
        if not fs_type.startswith("ext"):
            return True
        self._require(["e2fsck"])
        argv = ["e2fsck", "-p", "--", os.fspath(device)]
        try:
            self._run(argv, timeout=_CHANGE_SECONDS, ok_codes=range(_REPAIRED_AT_MOST + 1))
        except ProcessError as error:
            if error.exit_code is None or error.exit_code < 0 or error.exit_code & _CANCELED:
                raise
            if not error.exit_code & _UNCORRECTED:
                log.warning("%s was not checked before it is mounted: %s", os.fspath(device), error)
                return False
            raise FilesystemDamaged(
                f"{os.fspath(device)}: the {fs_type} filesystem has errors that are not repaired unasked; run "
                f"e2fsck on it by hand, then try again: {error}"
            ) from error
        return True

    def repair(self, device: StrPath) -> None:
        """Answer every question of e2fsck with yes, on an ext that is not mounted.

        Only for a caller with a record that the filesystem was sound and that its own growth of it was cut off since,
        which leaves the resize inode and the counts of free blocks wrong. Raises ProcessError.
        """
        self._require(["e2fsck"])
        argv = ["e2fsck", "-f", "-y", "--", os.fspath(device)]
        self._run(argv, timeout=_CHANGE_SECONDS, ok_codes=range(_REPAIRED_AT_MOST + 1))

    def _identify(self, device: StrPath) -> BlankProof:
        return self._patience.look(device, lambda: identify(device), at_most=_BLKID_SECONDS)

    def _refuse_signature(self, device: StrPath) -> None:
        content = self.content_of(device)
        if isinstance(content, Has):
            what = f"a partition table ({content.kind})" if content.is_partition_table else content.kind
            raise DeviceNotBlank(
                f"{os.fspath(device)} already holds {what}; it is not formatted. If that can be lost, make the device "
                "read as zeros (blkdiscard --zeroout) and try again"
            )

    def _compatible_words(self, fs_type: str, words: list[str]) -> list[str]:
        # Kernels before 4.16 write to an xfs with reflinks only at their peril, and nodes of one cluster differ.
        if fs_type != "xfs" or any("reflink" in word for word in words):
            return []
        usage = self._run(["mkfs.xfs", "-?"], timeout=_BLKID_SECONDS, ok_codes=range(256))
        return ["-m", "reflink=0"] if "reflink=0|1" in usage.stdout + usage.stderr else []


def _content(device: str, exit_code: int, output: str) -> Content:
    found = dict(line.partition("=")[::2] for line in output.splitlines())
    kind, table = found.get("TYPE", ""), found.get("PTTYPE", "")
    if exit_code == 0 and (kind or table):
        return Has(kind=kind or table, is_partition_table=not kind)
    if exit_code == _BLKID_FOUND_NOTHING and not found:
        return Blank()
    raise DeviceUnclear(
        f"{device}: blkid ended with {exit_code} and said {output.strip() or 'nothing'!r}, which names no content; "
        f"the device stays as it is. {_PROBE_BY_HAND}"
    )


def parse_mkfs_options(options: str, *, name: str = "mkfsOptions") -> list[str]:
    """Return mkfs options, given in shell words, one by one; raises InvalidArgument, which calls them ``name``."""
    try:
        words = shlex.split(options)
    except ValueError as error:
        raise InvalidArgument(f"{name}: {error}") from error
    # A path would be another device to format, a journal outside, a directory to copy from.
    if paths := [word for word in words if "/" in word]:
        raise InvalidArgument(f"{name}: expected options without a path, got {paths[0]}")
    return words


def _mkfs_words(fs_type: str, options: str) -> list[str]:
    if fs_type not in _MKFS_OPTIONS:
        raise InvalidArgument(f"fs_type: expected one of {', '.join(sorted(_MKFS_OPTIONS))}, got {fs_type}")
    return parse_mkfs_options(options) or list(_MKFS_OPTIONS[fs_type])
