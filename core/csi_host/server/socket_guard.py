"""Who owns the path of a unix socket.

grpcio unlinks whatever it finds at the path before it binds, a live socket of another server too, and unlinks the
path again when it stops, whosever socket is there by then. So gRPC never sees the real path: it binds a private one
beside it, and the bound socket is renamed into place under a lock.
"""

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from csi_host.server.endpoint import EndpointError

# struct sockaddr_un has 108 bytes for the path and its closing NUL (unix(7)).
MAX_SOCKET_PATH_BYTES = 107
_CONNECT_SECONDS = 1.0


class SocketGuard:
    """The right to listen at ``path``, held through a lock on ``<path>.lock`` until ``release`` or the process's end.

    The kernel drops the lock with the process, so a crash leaves no lock behind, whatever file it leaves.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock_path = path.with_name(path.name + ".lock")
        # As long as the real name, so that the limit on a socket's path is the same for both.
        self.private_path = path.with_name(path.name[:-1] + ("~" if path.name[-1] != "~" else "#"))
        self._lock: int | None = None
        self._identity: tuple[int, int] | None = None

    def claim(self) -> None:
        """Take the path; raises EndpointError when it cannot be a socket's path or somebody else has it."""
        self._check_path()
        self._lock = self._take_lock()
        try:
            self._check_nobody_answers()
        except EndpointError:
            self._drop_lock()
            raise

    @contextmanager
    def binding(self) -> Iterator[Path]:
        """Give the path to bind a socket at, which appears at the real path when the ``with`` ends well, mode 0600."""
        # The umask and not a chmod afterwards: nobody else may connect, not even for a moment.
        previous = os.umask(0o177)
        try:
            yield self.private_path
        finally:
            os.umask(previous)
        self._identity = _identity(self.private_path)
        self.private_path.rename(self._path)

    def remove_socket(self) -> None:
        """Remove the socket from the path if it is still the one bound here."""
        if self._identity is not None and _identity(self._path) == self._identity:
            self._path.unlink()
        self._identity = None

    def release(self) -> None:
        """Remove the socket, give the path up and take the lock file away."""
        self.remove_socket()
        if self._lock is not None:
            # Removed while it is still held: whoever opened it before finds, once locked, that it is not at the path.
            with suppress(FileNotFoundError):
                self._lock_path.unlink()
            self._drop_lock()

    def _check_path(self) -> None:
        length = len(os.fsencode(self._path))
        if length > MAX_SOCKET_PATH_BYTES:
            raise EndpointError(
                f"socket path {self._path}: expected at most {MAX_SOCKET_PATH_BYTES} bytes, it has {length}"
            )
        if not self._path.parent.is_dir():
            raise EndpointError(f"socket path {self._path}: the directory {self._path.parent} does not exist")

    def _take_lock(self) -> int:
        while True:
            descriptor = self._open_lock()
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                owner = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
                os.close(descriptor)
                raise EndpointError(
                    f"socket path {self._path}: another server owns it (process {owner or 'unknown'} holds the lock on "
                    f"{self._lock_path}: {error.strerror})"
                ) from error
            # The last owner may have removed the file between our open and our lock: then it locks nothing.
            status = os.fstat(descriptor)
            if _identity(self._lock_path) == (status.st_dev, status.st_ino):
                os.truncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
                return descriptor
            os.close(descriptor)

    def _open_lock(self) -> int:
        try:
            return os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise EndpointError(f"socket path {self._path}: {self._lock_path}: {error.strerror}") from error

    def _check_nobody_answers(self) -> None:
        try:
            mode = self._path.lstat().st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise EndpointError(f"socket path {self._path}: something that is not a socket is there; remove it first")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(_CONNECT_SECONDS)
            answer = probe.connect_ex(os.fspath(self._path))
        # Only a refused connection proves that nobody listens; a full backlog, for one, is a busy server.
        if answer not in {errno.ECONNREFUSED, errno.ENOENT}:
            why = "answers" if answer == 0 else f"may be there ({os.strerror(answer)})"
            raise EndpointError(f"socket path {self._path}: another server {why} on it")

    def _drop_lock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
