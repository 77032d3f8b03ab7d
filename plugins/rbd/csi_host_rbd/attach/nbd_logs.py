"""Log files of rbd-nbd, where a StorageClass asks for them: ``<cephLogDir>/rbd-nbd-<volume id>.log``, as in ceph-csi.

Whatever is wrong with a log is said in csi-host's own, and is no reason for a volume not to be attached or detached.
No call waits for a log to be compressed: it gets a name of its own, and a thread does the rest. When that is cut off,
the next time that the volume is unstaged here finishes it, or replaces it by a newer log.
"""

import glob
import gzip
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock, Thread

log = logging.getLogger(__name__)

DEFAULT_DIRECTORY = "/var/log/ceph"
DEFAULT_STRATEGY = "remove"
# What the names of the threads begin with.
COMPRESSING = "csi-host-compress"
_ASIDE = ".aside"
_one_at_a_time = Lock()
STRATEGIES = (DEFAULT_STRATEGY, "compress", "preserve")


def is_directory_name(directory: str) -> bool:
    """Whether logs can have such a directory: an absolute path that leads nowhere else."""
    return directory.isprintable() and Path(directory).is_absolute() and ".." not in Path(directory).parts


def log_file(directory: str, volume_id: str) -> Path:
    """Return the log file of a volume's daemon."""
    return Path(directory, f"rbd-nbd-{volume_id}.log")


def can_be_written(path: Path) -> bool:
    """Make the log file unless it is there, so that a daemon that cannot write it is started without."""
    if not is_directory_name(str(path.parent)):
        log.warning("volume_context[cephLogDir]: rbd-nbd writes no log: expected an absolute path, got %r", str(path))
        return False
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    except OSError as error:
        log.warning("volume_context[cephLogDir]: rbd-nbd writes no log: %s: %s", path, error.strerror)
        return False
    return True


def put_away(path: Path, strategy: str) -> None:
    """Remove the log of a daemon that has ended, compress it to ``.gz`` in place of an older one, or keep it.

    Compressing goes on after this has returned.
    """
    with _saying_what_fails(path, strategy):
        match strategy:
            case "preserve":
                pass
            case "compress":
                _put_aside(path)
                Thread(target=_compress, args=(path,), name=f"{COMPRESSING} {path.name}", daemon=True).start()
            case "remove" | "":
                path.unlink(missing_ok=True)
            case _:
                log.error(
                    "%s is kept, as its strategy is not known: expected one of %s, got %r",
                    path, ", ".join(STRATEGIES), strategy,
                )  # fmt: skip


def _put_aside(path: Path) -> None:
    """Give the log a name that the volume's next daemon does not write to."""
    with suppress(FileNotFoundError):
        path.rename(path.with_name(f"{path.name}.{time.time_ns()}{_ASIDE}"))


def _compress(path: Path) -> None:
    with _one_at_a_time, _saying_what_fails(path, "compress"):
        aside = sorted(path.parent.glob(f"{glob.escape(path.name)}.*{_ASIDE}"))
        if not aside:
            return
        unfinished = path.with_name(f"{path.name}.gz.unfinished")
        unfinished.unlink(missing_ok=True)
        # As readable as the log itself.
        unfinished.touch(mode=0o600, exist_ok=False)
        with aside[-1].open("rb") as plain, gzip.open(unfinished, "wb") as packed:
            shutil.copyfileobj(plain, packed)
        unfinished.replace(f"{path}.gz")
        for file in aside:
            file.unlink()


@contextmanager
def _saying_what_fails(path: Path, strategy: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        log.error("%s: to %s it failed: %s", path, strategy, error.strerror)  # noqa: TRY400 (what failed says it all)
