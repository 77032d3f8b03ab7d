"""Reading a block device as it is, past the page cache."""

import errno
import fcntl
import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from csi_host.errors import FailedPrecondition
from csi_host.node.mounts import StrPath

CHUNK_BYTES = 4 * 1024**2


class DeviceUnclear(FailedPrecondition):
    """It cannot be told what is on the device, which is no permission to format it."""


def identity_of(found: os.stat_result) -> tuple[int, int]:
    """Return what tells a device or file from another one that gets its name later."""
    if not stat.S_ISBLK(found.st_mode):
        return found.st_dev, found.st_ino
    # A loop device keeps its number when another file is attached to it; the kernel counts that (since 5.15).
    sequence = Path(f"/sys/dev/block/{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}/diskseq")
    try:
        return found.st_rdev, int(sequence.read_text())
    except (FileNotFoundError, ValueError):
        return found.st_rdev, 0


class DeviceReader:
    """A block device (or a file in its place), open for reading while the ``with`` lasts.

    ``exclusive`` refuses a device that the kernel has in use: mounted, or below another device. Raises DeviceUnclear.
    ``identity`` tells it from another device that gets its name later.
    """

    def __init__(self, device: StrPath, *, exclusive: bool = False) -> None:
        self.name = os.fspath(device)
        self.descriptor = -1
        self.size_bytes = 0
        self.identity = (0, 0)
        self._exclusive = exclusive
        self._open = ExitStack()

    def __enter__(self) -> Self:
        with self._open, self._errors_named("opened"):
            self._buffer = self._open.enter_context(mmap.mmap(-1, CHUNK_BYTES))
            self.descriptor = self._open_descriptor()
            self._open.callback(os.close, self.descriptor)
            found = os.fstat(self.descriptor)
            self.identity = identity_of(found)
            self.size_bytes = os.lseek(self.descriptor, 0, os.SEEK_END)
            if self.size_bytes == 0:
                raise DeviceUnclear(f"{self.name} has no size: it is not attached to anything")
            self._open = self._open.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes (CHUNK_BYTES at most) at ``offset``, both aligned to the device's blocks."""
        done = 0
        while done < length:
            with memoryview(self._buffer) as whole, whole[done:length] as part, self._errors_named("read"):
                count = self._read_some(part, offset + done)
            if count == 0:
                raise DeviceUnclear(f"{self.name} ends at byte {offset + done}, before its size of {self.size_bytes}")
            done += count
        return self._buffer[:length]

    def _open_descriptor(self) -> int:
        mode = os.stat(self.name).st_mode  # noqa: PTH116 - the same text as given to os.open
        if not stat.S_ISBLK(mode) and not stat.S_ISREG(mode):
            raise DeviceUnclear(f"{self.name} is neither a block device nor a file; it is left as it is")
        # O_EXCL without O_CREAT has a meaning for block devices only (open(2)).
        flags = os.O_RDONLY | os.O_CLOEXEC | (os.O_EXCL if stat.S_ISBLK(mode) and self._exclusive else 0)
        try:
            return os.open(self.name, flags | os.O_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        return os.open(self.name, flags)

    def _read_some(self, part: memoryview, offset: int) -> int:
        try:
            return os.preadv(self.descriptor, [part], offset)
        except OSError as error:
            flags = fcntl.fcntl(self.descriptor, fcntl.F_GETFL)
            if error.errno != errno.EINVAL or not flags & os.O_DIRECT:
                raise
        # Some filesystems take O_DIRECT at open and refuse it at read; then what is cached must go first.
        fcntl.fcntl(self.descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        return os.preadv(self.descriptor, [part], offset)

    @contextmanager
    def _errors_named(self, verb: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            why = "it is in use" if error.errno == errno.EBUSY else error.strerror
            raise DeviceUnclear(
                f"{self.name} cannot be {verb}: {why}. Nothing is written to it; mend the device, then try again"
            ) from error


def read_beginning(device: StrPath) -> None:
    """Read the first MiB for nothing but to see that it can be read; raises DeviceUnclear."""
    with DeviceReader(device) as reader:
        reader.read(0, min(reader.size_bytes, 1024**2))
