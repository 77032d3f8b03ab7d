"""A configuration file that is read again whenever it has changed: an edit needs no restart."""

import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class FileUnreadable(Exception):
    """The file cannot be read, is no text or no JSON; the message says why, and shows nothing of its text."""


@dataclass(frozen=True, kw_only=True)
class _Stamp:
    mtime_ns: int
    size: int
    inode: int


class WatchedFile(Generic[T]):
    """A JSON file and what it means; what ``parse`` raises is raised at every reading until the file is mended."""

    def __init__(self, path: Path, parse: Callable[[Any], T]) -> None:
        self._path = path
        self._parse = parse
        self._guard = threading.Lock()
        self._parsed: tuple[_Stamp, T] | None = None

    def read(self) -> T:
        """Return what the file means now; raises FileUnreadable, FileNotFoundError, and what ``parse`` raises."""
        with self._guard:
            try:
                # The stamp is that of the opened file: a Kubernetes ConfigMap is replaced by renaming.
                with self._path.open(encoding="utf-8") as file:
                    status = os.fstat(file.fileno())
                    stamp = _Stamp(mtime_ns=status.st_mtime_ns, size=status.st_size, inode=status.st_ino)
                    if self._parsed is None or self._parsed[0] != stamp:
                        self._parsed = None
                        self._parsed = stamp, self._parse(_loaded(file.read()))
            except FileNotFoundError:
                raise
            except OSError as error:
                raise FileUnreadable(f"cannot be read: {error.strerror}") from None
            except UnicodeDecodeError:
                raise FileUnreadable("cannot be read: it is not UTF-8 text") from None
            return self._parsed[1]


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise FileUnreadable(f"is not JSON (line {error.lineno})") from None
    except (ValueError, RecursionError):
        raise FileUnreadable("is not JSON (its text)") from None
