"""Which device nodes processes have open, told without waiting for whoever serves a filesystem."""

from collections.abc import Callable, Iterator
from pathlib import Path

# What device nodes lie on. A look at a file of any other filesystem might wait for whoever serves it.
_IN_MEMORY = frozenset({b"devtmpfs", b"tmpfs"})


class OpenNodes:
    """The device numbers of open files on filesystems in memory, which are known from /proc's text alone.

    ``check_time`` is called between looks, and may raise to end the search. A mount is known by its id in all mount
    namespaces, as a process may hold what was opened in another: a container's standard input, for one.
    """

    def __init__(self, check_time: Callable[[], None]) -> None:
        self._check_time = check_time
        self._is_in_memory: dict[bytes, bool] = {}
        self._read: set[tuple[Path, Path]] = set()
        self._is_all_read = False

    def number_of(self, process: Path, descriptor: str) -> int | None:
        """Return ``st_rdev`` of an open file, None when it is gone or lies where a look might hang.

        ``process`` is its directory in /proc.
        """
        try:
            mount_id = _mount_id((process / "fdinfo" / descriptor).read_bytes())
            if mount_id is None or not self._lies_in_memory(mount_id, process):
                return None
            return (process / "fd" / descriptor).stat().st_rdev
        except OSError:
            return None

    def _lies_in_memory(self, mount_id: bytes, process: Path) -> bool:
        if mount_id not in self._is_in_memory:
            self._read_mounts_of(process)
        if mount_id not in self._is_in_memory and not self._is_all_read:
            self._is_all_read = True
            for other in processes():
                self._check_time()
                self._read_mounts_of(other)
        return self._is_in_memory.get(mount_id, False)

    def _read_mounts_of(self, process: Path) -> None:
        try:
            # A process sees only the mounts below its root.
            view = (process / "ns/mnt").readlink(), (process / "root").readlink()
            if view in self._read:
                return
            table = (process / "mountinfo").read_bytes()
        except OSError:
            # Processes come and go while we look.
            return
        self._read.add(view)
        for line in table.splitlines():
            head, _, tail = line.partition(b" - ")
            self._is_in_memory[head.partition(b" ")[0]] = tail.partition(b" ")[0] in _IN_MEMORY


def processes() -> Iterator[Path]:
    """Yield the directories of processes in /proc."""
    return (entry for entry in Path("/proc").iterdir() if entry.name.isdigit())


def _mount_id(fdinfo: bytes) -> bytes | None:
    ids = (line.removeprefix(b"mnt_id:").strip() for line in fdinfo.splitlines() if line.startswith(b"mnt_id:"))
    return next(ids, None)
