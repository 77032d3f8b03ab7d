"""Log files of rbd-nbd, where a StorageClass asks for them: ``<cephLogDir>/rbd-nbd-<volume id>.log``, as in ceph-csi.

Whatever is wrong with a log is said in csi-host's own, and is no reason for a volume not to be attached or detached.
Cut off in the middle, putting one away is begun anew by the next NodeUnstageVolume, as the stash goes after it.
"""

import gzip
import logging
import os
import shutil
from pathlib import Path

log = logging.getLogger(__name__)

DEFAULT_DIRECTORY = "/var/log/ceph"
DEFAULT_STRATEGY = "remove"
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
    """Remove the log of a daemon that has ended, compress it to ``.gz`` in place of an older one, or keep it."""
    try:
        match strategy:
            case "preserve":
                pass
            case "compress":
                _compress(path)
            case "remove" | "":
                path.unlink(missing_ok=True)
            case _:
                log.error(
                    "%s is kept, as its strategy is not known: expected one of %s, got %r",
                    path, ", ".join(STRATEGIES), strategy,
                )  # fmt: skip
    except OSError as error:
        log.error("%s: to %s it failed: %s", path, strategy, error.strerror)  # noqa: TRY400 (what failed says it all)


def _compress(path: Path) -> None:
    if not path.exists():
        return
    unfinished = path.with_name(f"{path.name}.gz.unfinished")
    with path.open("rb") as plain, gzip.open(unfinished, "wb") as packed:
        shutil.copyfileobj(plain, packed)
    unfinished.replace(f"{path}.gz")
    path.unlink()
