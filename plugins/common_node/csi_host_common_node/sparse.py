"""Where a device can hold data at all: what a sparse file knows of itself."""

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from csi_host_common_node.block import backing_file
from csi_host_common_node.reading import DeviceReader

Extent = tuple[int, int]

_LOOP_MAJOR = 7
_LOOP_GET_STATUS64 = 0x4C05
_LOOP_INFO64_BYTES = 232


def data_spans(reader: DeviceReader) -> list[Extent]:
    """Return (offset, length) in bytes of everything that may hold data: all of the device where nobody knows better.

    A block device has no SEEK_DATA of its own (lseek(2)); of a loop device its file is asked.
    """
    with _sparse_file(reader) as descriptor:
        return list(_seek_data(descriptor, reader.size_bytes))


@contextmanager
def _sparse_file(reader: DeviceReader) -> Iterator[int]:
    backing = _open_backing(reader)
    try:
        yield reader.descriptor if backing is None else backing
    finally:
        if backing is not None:
            os.close(backing)


def _open_backing(reader: DeviceReader) -> int | None:
    """Open the file behind a loop device; None unless device and file are the same bytes at the same places."""
    path = backing_file(reader.name)
    if path is None or os.major(reader.identity[0]) != _LOOP_MAJOR:
        return None
    with suppress(OSError):
        # What was written to the device and is not in its file yet would look like a hole.
        os.fsync(reader.descriptor)
        status = fcntl.ioctl(reader.descriptor, _LOOP_GET_STATUS64, bytes(_LOOP_INFO64_BYTES))
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if _is_whole_file(descriptor, status):
            return descriptor
        os.close(descriptor)
    return None


def _is_whole_file(descriptor: int, status: bytes) -> bool:
    device, inode, _, offset, size_limit = struct.unpack_from("5Q", status)
    found = os.fstat(descriptor)
    return (device, inode, offset, size_limit) == (_kernel_number(found.st_dev), found.st_ino, 0, 0)


def _kernel_number(number: int) -> int:
    """Return a device number as the kernel writes it in its own structures (new_encode_dev)."""
    major, minor = os.major(number), os.minor(number)
    return (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)


def _seek_data(descriptor: int, size_bytes: int) -> Iterator[Extent]:
    end = 0
    while end < size_bytes:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
            end_of_data = os.lseek(descriptor, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno != errno.ENXIO:
                # Cannot say: everything from here on may be data.
                yield end, size_bytes - end
            return
        yield start, end_of_data - start
        end = end_of_data
