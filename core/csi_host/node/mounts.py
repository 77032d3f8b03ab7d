"""What is mounted where, read from the kernel's own table and never by touching a mount.

The source is /proc/self/mountinfo (proc(5)). Comparing ``st_dev`` cannot see a bind mount on one filesystem, and a
``stat`` of a dead network or FUSE mount hangs or fails; text does neither.
"""

import os
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_MOUNTINFO = Path("/proc/self/mountinfo")
_OCTAL = re.compile(rb"\\([0-7]{3})")
_DELETED = "//deleted"
_READS_AT_MOST = 10
# What device nodes lie on. A look at a file of any other filesystem might wait for whoever serves it.
_WITH_NODES = frozenset({"devtmpfs", "tmpfs"})

StrPath = str | os.PathLike[str]


@dataclass(frozen=True, kw_only=True)
class Mount:
    """One line of mountinfo, unescaped.

    ``device`` is ``major:minor`` of the filesystem (of devtmpfs, where a device node is bind mounted), ``root`` the
    path inside that filesystem that is shown, ``options`` those of this mount, ``super_options`` the filesystem's.
    """

    mount_id: int
    parent_id: int
    device: str
    root: str
    mount_point: str
    options: tuple[str, ...]
    propagation: tuple[str, ...]
    fs_type: str
    source: str
    super_options: tuple[str, ...]

    @property
    def is_read_only(self) -> bool:
        """Whether nothing can be written through this mount, whoever decided so."""
        return "ro" in self.options or "ro" in self.super_options

    @property
    def is_deleted(self) -> bool:
        """Whether the directory or file that was bind mounted has been removed since."""
        return self.root.endswith(_DELETED)

    @property
    def location(self) -> "Location":
        """What is shown, whatever it is called: two mounts of one location show the same files."""
        return Location(device=self.device, root=self.root.removesuffix(_DELETED))


@dataclass(frozen=True, kw_only=True)
class Location:
    """A file or directory by filesystem (``major:minor``) and path inside it."""

    device: str
    root: str


def parse_mounts(text: bytes) -> tuple[Mount, ...]:
    """Parse the content of a mountinfo file; lines that are not whole are an error (ValueError)."""
    return tuple(_parse_line(line) for line in text.split(b"\n") if line)


def read_mounts() -> tuple[Mount, ...]:
    """Return the mounts of this process' namespace, in the kernel's order."""
    return parse_mounts(_read_steady(_MOUNTINFO))


def mount_at(path: StrPath, mounts: Sequence[Mount] | None = None) -> Mount | None:
    """Return the mount that a user of ``path`` meets there (the topmost of several); None when nothing is mounted.

    Symbolic links are followed in the parent directory only: the last part may be a mount that must not be touched.
    """
    shown = resolve_parent(path)
    mount = _mount_holding(shown, read_mounts() if mounts is None else mounts)
    return mount if mount is not None and mount.mount_point == shown else None


def is_mount_point(path: StrPath, mounts: Sequence[Mount] | None = None) -> bool:
    """Tell whether something is mounted exactly at ``path``; False also when the path does not exist."""
    return mount_at(path, mounts) is not None


def location_of(path: StrPath, mounts: Sequence[Mount] | None = None) -> Location | None:
    """Return what ``path`` shows, by filesystem and path inside it; None when no mount is known to hold it.

    Not only mount points: for a device node it is the node's place in devtmpfs, as a bind mount of the node has it.
    """
    shown = resolve_parent(path)
    mount = _mount_holding(shown, read_mounts() if mounts is None else mounts)
    if mount is None:
        return None
    below = os.path.relpath(shown, mount.mount_point)
    root = mount.location.root if below == "." else f"{mount.location.root.rstrip('/')}/{below}"
    return Location(device=mount.device, root=root)


def mounts_showing(path: StrPath, mounts: Sequence[Mount] | None = None) -> tuple[Mount, ...]:
    """Return every mount that shows what ``path`` shows: a staged directory and all its bind mounts, for one.

    Block devices are told by their numbers, as one may have nodes of several names, and one name several devices in
    turn.
    """
    table = read_mounts() if mounts is None else mounts
    shown = resolve_parent(path)
    holding, location = _mount_holding(shown, table), location_of(shown, table)
    number = _block_number(shown) if holding is not None and holding.fs_type in _WITH_NODES else None
    return tuple(mount for mount in table if _shows(mount, table, location, number))


def node_number(mount: Mount, mounts: Sequence[Mount] | None = None) -> str | None:
    """Return ``major:minor`` of the block device whose node is bind mounted, None for all else.

    Looks at the node only, never at the device, which may be gone. None also where another mount covers it.
    """
    if mount.fs_type not in _WITH_NODES or mount.root == "/":
        return None
    met = _mount_holding(mount.mount_point, read_mounts() if mounts is None else mounts)
    return _block_number(mount.mount_point) if met is not None and met.mount_id == mount.mount_id else None


def mounts_of_device(device: StrPath, mounts: Sequence[Mount] | None = None) -> tuple[Mount, ...]:
    """Return every mount that uses the block device: filesystems on it, and bind mounts of its node.

    Looks at the device node only, never at the device. btrfs hides behind a number of its own, so its mounts are
    known by their source. Raises FileNotFoundError when there is no such node.
    """
    table = read_mounts() if mounts is None else mounts
    node = os.path.realpath(device, strict=True)
    number = Path(node).stat().st_rdev
    device_number = f"{os.major(number)}:{os.minor(number)}"
    showing = mounts_showing(node, table)
    return tuple(mount for mount in table if mount.device == device_number or mount.source == node or mount in showing)


def mounts_below(path: StrPath, mounts: Sequence[Mount] | None = None) -> tuple[Mount, ...]:
    """Return the mounts strictly inside the directory ``path``."""
    prefix = resolve_parent(path).rstrip("/") + "/"
    table = read_mounts() if mounts is None else mounts
    return tuple(mount for mount in table if mount.mount_point.startswith(prefix) and mount.mount_point != prefix)


def resolve_parent(path: StrPath) -> str:
    """Return ``path`` absolute, with the symbolic links of its parent directory followed, its last part untouched."""
    parent, name = os.path.split(os.fspath(path).rstrip("/"))
    if name in {"", ".", ".."}:
        return os.path.realpath(path)
    return f"{os.path.realpath(parent).rstrip('/')}/{name}"


def split_options(text: str) -> tuple[str, ...]:
    """Split a mount option string at its commas, but not at those inside double quotes.

    SELinux contexts carry commas: ``context="system_u:object_r:t:s0:c1,c2"`` is one option.
    """
    if '"' not in text:
        return tuple(word for word in text.split(",") if word)
    words, start, is_quoted = [], 0, False
    for position, letter in enumerate(text):
        if letter == '"':
            is_quoted = not is_quoted
        elif letter == "," and not is_quoted:
            words.append(text[start:position])
            start = position + 1
    words.append(text[start:])
    return tuple(word for word in words if word)


def unescape(field: bytes) -> str:
    r"""Undo mountinfo's escapes: ``\040`` space, ``\011`` tab, ``\012`` newline, ``\134`` backslash, ``\043`` #."""
    return os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), field))


def _parse_line(line: bytes) -> Mount:
    # One space between fields, exactly: an empty source shows as two spaces.
    head, separator, tail = line.partition(b" - ")
    before, after = head.split(b" "), tail.split(b" ")
    if not separator or len(before) < 6 or len(after) < 3:  # noqa: PLR2004 - the fields of proc(5)
        raise ValueError(f"not a line of mountinfo: {line!r}")
    mount_id, parent_id, device, root, mount_point, options, *propagation = before
    fs_type, source, super_options = after[:3]
    return Mount(
        mount_id=int(mount_id),
        parent_id=int(parent_id),
        device=device.decode("ascii"),
        root=unescape(root),
        mount_point=unescape(mount_point),
        options=_parse_options(options),
        propagation=tuple(word.decode("ascii") for word in propagation),
        fs_type=unescape(fs_type),
        source=unescape(source),
        super_options=_parse_options(super_options),
    )


def _parse_options(field: bytes) -> tuple[str, ...]:
    # Split first: a comma inside a value is escaped, and would become a separator.
    words = split_options(os.fsdecode(field))
    return tuple(unescape(os.fsencode(word)) for word in words) if b"\\" in field else words


def _read_steady(path: Path) -> bytes:
    # The kernel hands the table out a page at a time; a mount or unmount in between may hide or repeat lines of
    # others. Two equal readings in a row were not disturbed. On a node that never rests the last reading has to do:
    # kernels since 5.8 keep a cursor and lose no line that was there throughout.
    before = path.read_bytes()
    for _ in range(_READS_AT_MOST):
        now = path.read_bytes()
        if now == before:
            break
        before = now
    return before


def _shows(mount: Mount, table: Sequence[Mount], location: Location | None, number: str | None) -> bool:
    own = None if number is None else node_number(mount, table)
    return mount.location == location if own is None else own == number


def _block_number(path: str) -> str | None:
    try:
        found = Path(path).lstat()
    except OSError:
        return None
    return f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}" if stat.S_ISBLK(found.st_mode) else None


def _mount_holding(path: str, mounts: Sequence[Mount]) -> Mount | None:
    """Walk down to ``path`` as the kernel does, from mount to mount: what a later mount has covered is not met."""
    covered_by = {(mount.parent_id, mount.mount_point): mount for mount in mounts if mount.mount_id != mount.parent_id}
    current = _root(mounts)
    if current is None:
        return None
    for prefix in _prefixes(path):
        while (upper := covered_by.get((current.mount_id, prefix))) is not None:
            current = upper
    return current


def _root(mounts: Sequence[Mount]) -> Mount | None:
    known = {mount.mount_id for mount in mounts if mount.mount_id != mount.parent_id}
    return next((mount for mount in mounts if mount.mount_point == "/" and mount.parent_id not in known), None)


def _prefixes(path: str) -> Iterable[str]:
    yield "/"
    for position in range(1, len(path)):
        if path[position] == "/":
            yield path[:position]
    if path != "/":
        yield path
