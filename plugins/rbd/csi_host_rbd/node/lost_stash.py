"""A note of the devices of a volume whose stash is lost, made before it is unmounted.

Without it a detaching that fails, or a process that dies before it, would leave a device of which nobody knows; so
what is below a mapping of dm-crypt is noted as well, which is hidden as soon as the mapping is closed. A device that
got the name since is told by its identity, and left alone.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from csi_host_common_node.reading import identity_of
from csi_host_rbd.node.staging import Staging
from csi_host_rbd.node.stash import STASH_NAME

# The beginning of the name is that of what a cut-off write of the stash leaves: both go with the stash.
_NOTE = f".{STASH_NAME}.device"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def note_devices(staging: Staging, devices: Sequence[str]) -> None:
    """Note in the staging directory which devices have to be detached, in order; it is on disk when this returns."""
    note = {
        "volumeId": staging.volume_id,
        # Identities are counted anew from each boot on.
        "boot": _BOOT_ID.read_text(encoding="ascii"),
        "devices": [{"device": device, "identity": identity_of(Path(device).stat())} for device in devices],
    }
    descriptor = os.open(staging.directory / _NOTE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, json.dumps(note).encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def noted_devices(staging: Staging) -> tuple[str, ...]:
    """Return those of the devices noted for the volume that have not gone since; empty without a note."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        note = json.loads((staging.directory / _NOTE).read_text(encoding="utf-8"))
        if note["volumeId"] == staging.volume_id and note["boot"] == _BOOT_ID.read_text(encoding="ascii"):
            return tuple(_unchanged(note["devices"]))
    return ()


def forget_devices(staging: Staging) -> None:
    """Remove the note."""
    with suppress(FileNotFoundError, NotADirectoryError):
        (staging.directory / _NOTE).unlink()


def _unchanged(noted: Sequence[dict[str, object]]) -> Iterator[str]:
    for each in noted:
        device = str(each["device"])
        with suppress(OSError):
            if list(identity_of(Path(device).stat())) == each["identity"]:
                yield device
