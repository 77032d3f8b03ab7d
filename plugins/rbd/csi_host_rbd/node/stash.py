"""image-meta.json: what an unstage or an expansion has to know of a staged volume, without any secret.

The file lies in the staging directory and has ceph-csi's names, so that either driver can take over from the other;
``clusterID``, ``fsid``, ``mounter`` and ``volumeId`` are ours. Versions 2 and 3 are read, 3 is written.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from csi_host.errors import Internal
from csi_host_rbd.attach.attacher import ImageSpec

STASH_NAME = "image-meta.json"
_VERSION = 3


class StashUnreadable(Internal):
    """The stash is there and cannot be understood; the message says what is wrong with it."""


@dataclass(frozen=True, kw_only=True)
class Stash:
    """A staged volume: which image it is and through which mounter it became a device.

    ``cluster_id``, ``fsid`` (the cluster's own id) and ``volume_id`` are "" in a file that ceph-csi wrote.
    ``device`` is rbd-nbd's; ``unmap_options`` are those of the mounter.
    """

    pool: str
    image: str
    namespace: str = ""
    cluster_id: str = ""
    fsid: str = ""
    volume_id: str = ""
    mounter: str = "rbd"
    unmap_options: str = ""
    encrypted: bool = False
    device: str = ""
    log_directory: str = ""
    log_strategy: str = ""

    @property
    def spec(self) -> ImageSpec:
        """The image, as attachers call it."""
        return ImageSpec(
            cluster_id=self.cluster_id,
            pool=self.pool,
            namespace=self.namespace,
            image=self.image,
            volume_id=self.volume_id,
            fsid=self.fsid,
        )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return what the text of a stash says; raises StashUnreadable."""
        try:
            members = json.loads(text)
        except ValueError as error:
            raise StashUnreadable(f"expected a JSON object: {error}") from error
        if not isinstance(members, dict):
            raise StashUnreadable("expected a JSON object")
        return cls(
            pool=_text(members, "pool", is_required=True),
            image=_text(members, "image", is_required=True),
            namespace=_text(members, "radosNamespace"),
            cluster_id=_text(members, "clusterID"),
            fsid=_text(members, "fsid"),
            volume_id=_text(members, "volumeId"),
            mounter=_text(members, "mounter") or ("rbd-nbd" if _truth(members, "accessType") else "rbd"),
            unmap_options=_text(members, "unmapOptions"),
            encrypted=_truth(members, "encrypted"),
            device=_text(members, "device"),
            log_directory=_text(members, "logDir"),
            log_strategy=_text(members, "logFileStrategy"),
        )

    def to_json(self) -> str:
        """Return the text of the file; ``accessType`` is true for rbd-nbd, as ceph-csi has it."""
        return json.dumps(
            {
                "Version": _VERSION,
                "pool": self.pool,
                "radosNamespace": self.namespace,
                "image": self.image,
                "unmapOptions": self.unmap_options,
                "accessType": self.mounter == "rbd-nbd",
                "encrypted": self.encrypted,
                "device": self.device,
                "logDir": self.log_directory,
                "logFileStrategy": self.log_strategy,
                "clusterID": self.cluster_id,
                "fsid": self.fsid,
                "volumeId": self.volume_id,
                "mounter": self.mounter,
            }
        )


def read_stash(directory: Path) -> Stash | None:
    """Return the stash of a staging directory, None when it has none; raises StashUnreadable."""
    path = directory / STASH_NAME
    try:
        return Stash.parse(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise StashUnreadable(f"{path}: {error}") from error
    except StashUnreadable as error:
        raise StashUnreadable(f"{path}: {error}") from error


def write_stash(directory: Path, stash: Stash) -> None:
    """Put the stash into a staging directory: whole or not at all, also through a power cut."""
    descriptor, temporary = tempfile.mkstemp(dir=directory, prefix=f".{STASH_NAME}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(stash.to_json())
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(directory / STASH_NAME)
    except BaseException:
        with suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise
    _sync_directory(directory)


def remove_stash(directory: Path) -> None:
    """Take the stash away, and what a write that was cut off left beside it."""
    with suppress(FileNotFoundError, NotADirectoryError):
        for leftover in directory.glob(f".{STASH_NAME}.*"):
            leftover.unlink(missing_ok=True)
        (directory / STASH_NAME).unlink(missing_ok=True)
        _sync_directory(directory)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _text(members: Mapping[str, Any], name: str, *, is_required: bool = False) -> str:
    value = members.get(name)
    if value is None and not is_required:
        return ""
    if not isinstance(value, str) or (is_required and not value):
        raise StashUnreadable(f"{name}: expected a text, got {value!r}")
    return value


def _truth(members: Mapping[str, Any], name: str) -> bool:
    value = members.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise StashUnreadable(f"{name}: expected true or false, got {value!r}")
    return value
