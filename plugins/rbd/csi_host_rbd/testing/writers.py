"""A pod that writes to a volume all the while, and knows what of it has to be there afterwards."""

import os
import threading
import time
from pathlib import Path

_LINE_BYTES = 4096
_PAUSE_SECONDS = 0.02


class Writer(threading.Thread):
    """Appends numbered lines to a file, each flushed before the next; ``safe`` is how many are on the volume.

    ``patience`` is how long the volume may take for a line, in seconds.
    """

    def __init__(self, path: Path, *, patience: float) -> None:
        super().__init__(daemon=True)
        self._path = path
        self._patience = patience
        self._ended = threading.Event()
        self._failure: OSError | None = None
        self.safe = 0

    def run(self) -> None:
        """Write until told to end, or until a write fails."""
        try:
            with self._path.open("wb", buffering=0) as file:
                while not self._ended.wait(_PAUSE_SECONDS):
                    file.write(_line(self.safe))
                    os.fsync(file.fileno())
                    self.safe += 1
        except OSError as error:
            self._failure = error

    def wait_for_more(self) -> None:
        """Wait until more lines are safe; raises AssertionError when a write has failed or takes too long."""
        wanted, until = self.safe + 3, time.monotonic() + self._patience
        while self.safe < wanted:
            self._refuse_failure()
            if time.monotonic() > until:
                raise AssertionError(f"nothing more is written within {self._patience:g} s")
            self._ended.wait(_PAUSE_SECONDS)

    def end(self) -> None:
        """Stop writing; raises AssertionError when a write has failed or does not end."""
        self._ended.set()
        self.join(self._patience)
        if self.is_alive():
            raise AssertionError(f"a write does not end within {self._patience:g} s")
        self._refuse_failure()

    def check(self, path: Path) -> None:
        """Raise AssertionError unless all that was safe is in the file, which may be another mount's by now."""
        content = path.read_bytes()[: self.safe * _LINE_BYTES]
        if content != b"".join(map(_line, range(self.safe))):
            raise AssertionError(f"{path} does not begin with the {self.safe} lines that were safe")

    def _refuse_failure(self) -> None:
        if self._failure is not None:
            raise AssertionError(f"writing {self._path} failed: {self._failure}")


def _line(number: int) -> bytes:
    return f"{number}\n".encode().rjust(_LINE_BYTES)
