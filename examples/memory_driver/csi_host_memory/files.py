"""Volumes and snapshots as sparse files. The directory is the database: it is read anew for each call."""

import os
import re
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from csi_host.errors import FailedPrecondition, OutOfRange
from csi_host.process import Runner
from csi_host.request import seconds_for
from csi_host_common_node.block import LoopDevices

_COPY_SECONDS = 300.0
# A name belongs to one id for ever, which makes CreateVolume's retry find what the first call made.
_NAMESPACE = uuid.UUID("f3a1c1de-6c2b-4a60-9b6f-5a0f0c3f3c11")
_ID = r"(?:vol|snap)-[0-9a-f-]{36}"
_FILE_NAME = re.compile(rf"(?P<identifier>{_ID})\.(?P<origin>{_ID}|new)")


@dataclass(frozen=True, kw_only=True)
class File:
    """A volume or a snapshot as it is now; ``origin`` is the id of what it was copied from, or ``new``."""

    path: Path
    identifier: str
    origin: str
    size_bytes: int
    created: float


class Files:
    """The files of one kind, ``vol`` or ``snap``. The caller holds the lock of the id it changes."""

    def __init__(self, directory: Path, *, kind: str, run: Runner) -> None:
        self._directory = directory
        self._kind = kind
        self._run = run
        self._loops = LoopDevices(run)

    def identifier(self, name: str) -> str:
        """Return the id of what is called ``name``, whether it exists or not."""
        return f"{self._kind}-{uuid.uuid5(_NAMESPACE, name)}"

    def all(self) -> Sequence[File]:
        """Return every file of this kind, in the order of the ids."""
        found = []
        for path in self._directory.glob(f"{self._kind}-*"):
            # Another call may remove it while we look.
            with suppress(FileNotFoundError):
                if match := _FILE_NAME.fullmatch(path.name):
                    about = path.stat()
                    found.append(File(path=path, size_bytes=about.st_size, created=about.st_mtime, **match.groupdict()))
        return sorted(found, key=lambda file: file.identifier)

    def find(self, identifier: str) -> File | None:
        """Return the file with this id, None when there is none."""
        return next((file for file in self.all() if file.identifier == identifier), None)

    def create(self, identifier: str, size_bytes: int, source: File | None) -> None:
        """Make a file of zeros, or a copy of ``source`` with zeros at its end; a failure leaves nothing.

        Raises FailedPrecondition for a source that is in use, as its copy would not be of one moment, and OutOfRange.
        """
        self._check_room(size_bytes)
        # The name shows whether the file is finished: a crash leaves one that nobody finds, and the retry overwrites.
        unfinished = self._directory / f"{identifier}.unfinished"
        try:
            if source is None:
                unfinished.unlink(missing_ok=True)
                unfinished.touch(mode=0o600)
            else:
                self._copy(source, unfinished)
            os.truncate(unfinished, size_bytes)
            unfinished.rename(self._directory / f"{identifier}.{source.identifier if source else 'new'}")
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise

    def grow(self, file: File, size_bytes: int) -> None:
        """Make a file longer, in use or not; raises OutOfRange."""
        self._check_room(size_bytes)
        os.truncate(file.path, size_bytes)

    def remove(self, file: File) -> None:
        """Remove a file; raises FailedPrecondition while it is in use."""
        self._refuse_in_use(file)
        file.path.unlink(missing_ok=True)

    def _copy(self, source: File, target: Path) -> None:
        self._refuse_in_use(source)
        timeout = seconds_for(f"copying {source.identifier}", at_most=_COPY_SECONDS)
        self._run(["cp", "--sparse=always", "--", str(source.path), str(target)], timeout=timeout)

    def _check_room(self, size_bytes: int) -> None:
        # Files are sparse and memory is taken as it is written to; what can never be written is not promised.
        about = os.statvfs(self._directory)
        if size_bytes > about.f_blocks * about.f_frsize:
            raise OutOfRange(
                f"capacity_range.required_bytes: expected at most {about.f_blocks * about.f_frsize}, got {size_bytes}"
            )

    def _refuse_in_use(self, file: File) -> None:
        if self._loops.find(file.path):
            raise FailedPrecondition(f"{file.identifier} is in use on this node; unstage it first")
