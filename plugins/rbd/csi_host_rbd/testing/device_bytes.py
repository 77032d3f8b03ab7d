"""What a block device holds, written and read as a workload does."""

import os
from pathlib import Path


def write_to(device: str, offset: int, data: bytes) -> None:
    """Write through the page cache, and have the kernel flush it."""
    descriptor = os.open(device, os.O_WRONLY)
    try:
        os.pwrite(descriptor, data, offset)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_from(device: str, offset: int, length: int) -> bytes:
    """Return bytes of a device."""
    with Path(device).open("rb", buffering=0) as file:
        file.seek(offset)
        return file.read(length)
