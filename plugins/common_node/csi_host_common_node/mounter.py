"""Mounting and unmounting by mount(8); whether it worked is read from mountinfo, never from words."""

import os
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from csi_host.errors import Aborted, CsiError, FailedPrecondition, Internal, InvalidArgument
from csi_host.node.mounts import Mount, StrPath, location_of, mount_at, read_mounts, resolve_parent, split_options
from csi_host.process import ProcessError, Runner
from csi_host_common_node.holders import users_of
from csi_host_common_node.programs import require

# Replaying a journal over a slow network takes its time, and a killed mount(8) leaves the kernel at it.
_MOUNT_SECONDS = 600.0
_UNMOUNT_SECONDS = 120.0
_STACKED_AT_MOST = 64

MOUNT_PROGRAMS: Final = ("mount", "umount")

# What a bind mount can have of its own (mount(2), MS_REMOUNT | MS_BIND); all else belongs to the filesystem.
_BIND_OPTIONS = frozenset(
    {"ro", "rw", "nosuid", "suid", "nodev", "dev", "noexec", "exec", "nosymfollow", "symfollow"}
    | {"noatime", "atime", "nodiratime", "diratime", "relatime", "norelatime", "strictatime", "nostrictatime"}
)


class MountBusy(Aborted):
    """The mount is in use and stays; the message names who uses it, as far as can be seen."""


class MountFailed(Internal):
    """Nothing was mounted; the message has the kernel's reason."""


class Mounter:
    """Mounts and unmounts through ``run``; every path may hold spaces and begin with a dash."""

    def __init__(self, run: Runner) -> None:
        self._run = run

    def mount(self, source: StrPath, target: StrPath, fs_type: str, options: Sequence[str] = ()) -> None:
        """Mount the filesystem on ``source`` at the existing directory ``target``, where nothing may be mounted yet.

        Each option is one flag and stays whole. Raises MountFailed, FailedPrecondition (something is mounted there;
        the device turned out read-only though ``ro`` was not asked for), InvalidArgument for an unusable flag.
        """
        words = _checked_flags(options)
        self._mount(["-t", fs_type], source, target, words)
        mount = mount_at(target)
        if mount is not None and mount.is_read_only and "ro" not in _single(words):
            self.unmount(target)
            raise FailedPrecondition(f"{os.fspath(source)} can only be mounted read-only, and ro was not asked for")

    def bind(self, source: StrPath, target: StrPath, options: Sequence[str] = (), read_only: bool = False) -> None:
        """Show ``source`` (a directory or a file) at ``target`` as well, where nothing may be mounted yet.

        Of ``options`` those count that a bind mount can have of its own. When they or ``read_only`` cannot be had
        nothing stays mounted. Raises as ``mount`` does.
        """
        words = [word for word in _single(_checked_flags(options)) if word in _BIND_OPTIONS]
        if read_only:
            words = [word for word in words if word not in {"rw", "ro"}] + ["ro"]
        self._mount([], source, target, ["bind"])
        try:
            if words:
                self._remount(target, words)
            _check_shows(source, target, read_only="ro" in words)
        except CsiError:
            with suppress(CsiError):
                self.unmount(target)
            raise

    def unmount(self, target: StrPath) -> None:
        """Unmount everything that is mounted at ``target``, dead mounts too; fine when nothing is.

        Never lazily, never by force: what still writes keeps the mount. Raises MountBusy naming the users.
        """
        for _ in range(_STACKED_AT_MOST):
            if mount_at(target) is None:
                return
            self._unmount_top(target)
        raise Internal(f"{os.fspath(target)}: more than {_STACKED_AT_MOST} mounts on top of each other")

    def _mount(self, kind: Sequence[str], source: StrPath, target: StrPath, words: Sequence[str]) -> None:
        require(MOUNT_PROGRAMS)
        place = resolve_parent(target)
        _check_free(place)
        # Canonicalizing is done: mount(8) itself would look into what may be a dead mount.
        argv = ["mount", "--no-canonicalize", *kind, *(["-o", ",".join(words)] if words else [])]
        origin = os.path.realpath(source) if kind and os.fspath(source).startswith("/") else _bind_source(source, kind)
        try:
            self._run([*argv, "--", origin, place], timeout=_MOUNT_SECONDS)
        except ProcessError as error:
            # Mounted after all: mount(8) also fails when it cannot write its own notes.
            if error.timed_out or mount_at(place) is None:
                raise _explained(error) from error
        if mount_at(place) is None:
            raise MountFailed(f"{place}: mount reported success but nothing is mounted there")

    def _remount(self, target: StrPath, words: Sequence[str]) -> None:
        options = ",".join(["remount", "bind", *words])
        argv = ["mount", "--no-canonicalize", "-o", options, "--", resolve_parent(target)]
        try:
            self._run(argv, timeout=_MOUNT_SECONDS)
        except ProcessError as error:
            raise _explained(error) from error

    def _unmount_top(self, target: StrPath) -> None:
        require(["umount"])
        place = resolve_parent(target)
        before = read_mounts()
        try:
            self._run(["umount", "--no-canonicalize", "--", place], timeout=_UNMOUNT_SECONDS)
        except ProcessError as error:
            if error.is_missing or error.timed_out:
                raise
            if _top(place, read_mounts()) == _top(place, before):
                users = ", ".join(users_of(place)) or "nobody who can be seen from here"
                raise MountBusy(f"{place} cannot be unmounted: {error}; in use by: {users}") from error


def _top(place: str, mounts: Sequence[Mount]) -> int | None:
    mount = mount_at(place, mounts)
    return None if mount is None else mount.mount_id


def _bind_source(source: StrPath, kind: Sequence[str]) -> str:
    # Not followed at its end: a staged mount may be dead, and a symbolic link is no volume.
    return os.fspath(source) if kind else resolve_parent(source)


def _check_free(place: str) -> None:
    if (mount := mount_at(place)) is not None:
        raise FailedPrecondition(f"{place}: {mount.source} ({mount.fs_type}) is mounted there already")
    try:
        mode = Path(place).lstat().st_mode
    except FileNotFoundError:
        raise FailedPrecondition(f"{place} does not exist; nothing can be mounted there") from None
    if stat.S_ISLNK(mode):
        raise FailedPrecondition(f"{place} is a symbolic link; a mount there would land somewhere else")


def _check_shows(source: StrPath, target: StrPath, *, read_only: bool) -> None:
    mounts = read_mounts()
    mount = mount_at(target, mounts)
    if mount is None or mount.location != location_of(source, mounts):
        raise MountFailed(f"{os.fspath(target)} does not show {os.fspath(source)}")
    if read_only and not mount.is_read_only:
        raise MountFailed(f"{os.fspath(target)} was to be read-only and is not")


def _checked_flags(options: Iterable[str]) -> list[str]:
    words = [word for word in options if word]
    for word in words:
        # mount(8) keeps commas inside double quotes; an open quote would swallow the flags after it.
        if word.count('"') % 2 or "\0" in word or "\n" in word:
            raise InvalidArgument(f"mount_flags: {word!r} has an open quote, or a character no flag can have")
    return words


def _single(words: Iterable[str]) -> list[str]:
    return [part for word in words for part in split_options(word)]


def _explained(error: ProcessError) -> CsiError:
    return error if error.timed_out or error.is_missing else MountFailed(str(error))
