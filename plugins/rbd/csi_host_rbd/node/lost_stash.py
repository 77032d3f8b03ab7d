"""A note of the device of a mounted volume whose stash is lost, made before it is unmounted.

Without it a detaching that fails, or a process that dies before it, would leave a device of which nobody knows. A
device that got the name since is told by its identity, and left alone.
"""

import json
import os
from contextlib import suppress
from pathlib import Path

from csi_host_common_node.reading import identity_of
from csi_host_rbd.node.staging import Staging
from csi_host_rbd.node.stash import STASH_NAME

# The beginning of the name is that of what a cut-off write of the stash leaves: both go with the stash.
_NOTE = f".{STASH_NAME}.device"


def note_device(staging: Staging, device: str) -> None:
    """Note in the staging directory which device has to be detached; it is on disk when this returns."""
    note = {"volumeId": staging.volume_id, "device": device, "identity": identity_of(Path(device).stat())}
    descriptor = os.open(staging.directory / _NOTE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, json.dumps(note).encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def noted_device(staging: Staging) -> str | None:
    """Return the device that was noted for the volume; None without a note, or when the device has gone since."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        note = json.loads((staging.directory / _NOTE).read_text(encoding="utf-8"))
        is_same = list(identity_of(Path(note["device"]).stat())) == note["identity"]
        if is_same and note["volumeId"] == staging.volume_id:
            return str(note["device"])
    return None


def forget_device(staging: Staging) -> None:
    """Remove the note."""
    with suppress(FileNotFoundError, NotADirectoryError):
        (staging.directory / _NOTE).unlink()
