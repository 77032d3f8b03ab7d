"""Publishing a staged volume at a target and taking it away again, the same for every driver.

What is there is read from mountinfo each time, so that every call can follow upon a call that was cut off anywhere.
"""

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

from csi_host.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from csi_host.node.devices import device_with
from csi_host.node.mounts import (
    Mount,
    StrPath,
    is_mount_point,
    mount_at,
    mounts_showing,
    node_number,
    read_mounts,
    resolve_parent,
    split_options,
)
from csi_host_common_node.kubelet import is_map_of
from csi_host_common_node.mounter import Mounter

_DIRECTORY_MODE = 0o750
_FILE_MODE = 0o600
_NAMED_AT_MOST = 3
# The major number of filesystems that are on no block device, or do not say on which.
_NO_DEVICE = "0:"


class NotStaged(FailedPrecondition):
    """Nothing is mounted where the volume should be staged: staging never happened, or did not survive a reboot."""


class TargetInUse(AlreadyExists):
    """Something else is mounted at the target, or the same volume in another way."""


def publish_filesystem(
    mounter: Mounter, source: StrPath, target: StrPath, mount_flags: Sequence[str] = (), read_only: bool = False
) -> None:
    """Show the mounted directory ``source`` at ``target`` as well; fine when it is there in the same way already.

    The last part of ``target`` is created (0750), its parent must exist. Of ``mount_flags`` those count that a bind
    mount has of its own, the others were for staging. A failure leaves nothing. Raises NotStaged, TargetInUse,
    FailedPrecondition when the target is not an empty directory.
    """
    if not is_mount_point(source):
        raise NotStaged(f"staging_target_path: nothing is mounted at {os.fspath(source)}; stage the volume first")
    read_only = read_only or "ro" in [word for flag in mount_flags for word in split_options(flag)]
    if not _is_published(source, target, read_only=read_only):
        with _created(target, _make_directory):
            mounter.bind(source, target, mount_flags, read_only)


def publish_block(mounter: Mounter, source: StrPath, target: StrPath, read_only: bool = False) -> None:
    """Show the block device ``source`` (its node, or a file it is bind mounted on) at ``target``, a file (0600).

    Read-only is the mount's own property and shows the intent: writes through a node are refused by the device only,
    so whoever attaches must attach read-only. Otherwise as ``publish_filesystem``.
    """
    try:
        is_block = stat.S_ISBLK(Path(source).stat().st_mode)
    except FileNotFoundError:
        is_block = False
    if not is_block:
        raise NotStaged(f"staging_target_path: {os.fspath(source)} is no block device; stage the volume first")
    if not _is_published(source, target, read_only=read_only):
        with _created(target, _make_file):
            mounter.bind(source, target, read_only=read_only)


def unpublish(mounter: Mounter, target: StrPath) -> None:
    """Unmount all that is mounted at ``target`` and remove the empty directory or file; fine when it is gone.

    Never removes content: what is found below an unmounted target is not the volume's, yet may be somebody's. Raises
    FailedPrecondition then, and MountBusy.
    """
    place = Path(resolve_parent(target))
    if place == Path("/"):
        raise InvalidArgument("target_path: expected a path below /, got / itself")
    mounter.unmount(target)
    try:
        found = place.lstat()
        if stat.S_ISDIR(found.st_mode):
            _refuse_content(place)
            place.rmdir()
        elif stat.S_ISREG(found.st_mode) and found.st_size == 0:
            place.unlink()
        else:
            raise FailedPrecondition(f"{place} is neither an empty file nor an empty directory; it is left as it is")
    except (FileNotFoundError, NotADirectoryError):
        return


def other_targets(source: StrPath, target: StrPath) -> list[str]:
    """Return where the staged ``source`` is mounted besides there and at ``target``, kubelet's own mounts left out.

    For SINGLE_NODE_SINGLE_WRITER, which one target may have. Mounts of other namespaces cannot be seen.
    """
    mounts = read_mounts()
    known = {resolve_parent(source), resolve_parent(target)}
    shown = (mount for mount in mounts_showing(source, mounts) if not is_map_of(target, mount))
    return sorted({mount.mount_point for mount in shown} - known)


def clear_vanished(mounter: Mounter, source: StrPath, target: StrPath) -> None:
    """Unmount the target of a device that is gone, where the volume is staged on one that is there by now.

    Nobody reads or writes through such a mount again. All else stays, for publishing to judge. Raises MountBusy.
    """
    if shows_vanished(source, target):
        mounter.unmount(target)


def shows_vanished(source: StrPath, target: StrPath, mounts: Sequence[Mount] | None = None) -> bool:
    """Whether all that is mounted at ``target`` is of devices that are gone, and ``source`` of one that is there.

    btrfs does not show its device's number, so its mounts are never taken for dead.
    """
    table = read_mounts() if mounts is None else mounts
    # That the source's device is seen is also what says that /sys shows the devices of this machine.
    staged = mount_at(source, table)
    if staged is None or not _is_there(_device_number(staged, table)):
        return False
    place = resolve_parent(target)
    numbers = [_device_number(mount, table) for mount in table if mount.mount_point == place]
    return bool(numbers) and all(number is not None and not _is_there(number) for number in numbers)


def _is_there(number: str | None) -> bool:
    return number is not None and device_with(number) is not None


def _device_number(mount: Mount, mounts: Sequence[Mount]) -> str | None:
    """Return the number of the device that a mount shows or has its files on, None when it tells of none."""
    number = node_number(mount, mounts)
    return mount.device if number is None and not mount.device.startswith(_NO_DEVICE) else number


def _is_published(source: StrPath, target: StrPath, *, read_only: bool) -> bool:
    mounts = read_mounts()
    mount = mount_at(target, mounts)
    if mount is None:
        return False
    if mount not in mounts_showing(source, mounts):
        raise TargetInUse(
            f"target_path: {mount.source} ({mount.fs_type}, {mount.device}{mount.root}) is mounted at "
            f"{mount.mount_point}, not the volume staged at {os.fspath(source)}; unpublish it first"
        )
    is_read_only_source = (staged := mount_at(source, mounts)) is not None and staged.is_read_only
    if mount.is_read_only != (read_only or is_read_only_source):
        how = "read-only" if mount.is_read_only else "for writing"
        raise TargetInUse(f"target_path: the volume is mounted {how} at {mount.mount_point} already")
    return True


@contextmanager
def _created(target: StrPath, make: Callable[[Path], bool]) -> Iterator[None]:
    """Have the target there for the ``with``, and remove it again if that fails, unless it was there before."""
    place = Path(resolve_parent(target))
    try:
        is_new = make(place)
    except FileNotFoundError:
        raise FailedPrecondition(f"target_path: the directory {place.parent} does not exist") from None
    try:
        yield
    except BaseException:
        if is_new and not is_mount_point(place):
            with suppress(OSError):
                place.rmdir() if place.is_dir() else place.unlink()
        raise


def _make_directory(place: Path) -> bool:
    try:
        place.mkdir(mode=_DIRECTORY_MODE)
    except FileExistsError:
        if not stat.S_ISDIR(place.lstat().st_mode):
            raise FailedPrecondition(f"target_path: expected a directory or nothing at {place}") from None
        # A mount would hide what is there, and it would come to light again as if the volume had lost it.
        _refuse_content(place)
        return False
    return True


def _make_file(place: Path) -> bool:
    try:
        os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, _FILE_MODE))
    except FileExistsError:
        found = place.lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_size:
            raise FailedPrecondition(f"target_path: expected an empty file or nothing at {place}") from None
        return False
    return True


def _refuse_content(place: Path) -> None:
    with os.scandir(place) as entries:
        names = [entry.name for entry in islice(entries, _NAMED_AT_MOST)]
    if names:
        raise FailedPrecondition(
            f"{place} is not a mount and not empty ({', '.join(names)}); it is left as it is: move its content away"
        )
