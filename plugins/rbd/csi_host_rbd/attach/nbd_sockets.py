"""Where rbd-nbd's daemons are asked what they wait for: one admin socket for each, by a name of the volume's."""

import hashlib
import logging
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)

SOCKETS = Path("/run/csi-host/rbd-nbd")


class AdminSockets:
    """The sockets in a directory, which is made when the first one is needed."""

    def __init__(self, directory: Path = SOCKETS) -> None:
        self._directory = directory

    def place(self, name: str) -> str:
        """Return the path of a daemon's socket, "" where there is no place for it."""
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            log.warning("statistics cannot ask rbd-nbd what it waits for: %s: %s", self._directory, error.strerror)
            return ""
        return str(self._path(name))

    def forget(self, name: str) -> None:
        """Remove what a daemon that was killed has left."""
        # It is in nobody's way.
        with suppress(OSError):
            self._path(name).unlink()

    def _path(self, name: str) -> Path:
        # The path of a socket has 107 bytes at the most.
        return self._directory / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.asok"
