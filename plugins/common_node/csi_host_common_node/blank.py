"""Proof that a device holds nothing, by our own reading of it: blkid alone has cost others their data.

It finds nothing on a device that it could not read, and not everything that is data has a signature
(kubernetes/kubernetes#95183, longhorn/longhorn#14042).
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from csi_host.errors import FailedPrecondition
from csi_host.node.mounts import StrPath
from csi_host_common_node.reading import CHUNK_BYTES, DeviceReader, DeviceUnclear
from csi_host_common_node.sparse import Extent, data_spans

_EDGE_BYTES = 1024**2
# The largest logical block that O_DIRECT may ask to be aligned to.
_ALIGNMENT_BYTES = 4096
_ZEROS = bytes(CHUNK_BYTES)


class DeviceNotBlank(FailedPrecondition):
    """There is data on the device; it is never formatted."""


@dataclass(frozen=True, kw_only=True)
class BlankProof:
    """A device that may be formatted: its name, which one it is, and its size."""

    device: str
    identity: tuple[int, int]
    size_bytes: int


def read_blank(device: StrPath, extents: Iterable[Extent] | None, *, seconds: float) -> BlankProof:
    """Read everything on ``device`` that may be data, and prove that it is zeros only.

    ``extents`` are the (offset, length) in bytes that the backend has allocated, empty for none; without them it is
    what SEEK_DATA reports of a file or of the file behind a loop device, else the whole device. The first and the last
    MiB are read in any case. Raises DeviceNotBlank, and DeviceUnclear also when ``seconds`` do not suffice.
    """
    until = time.monotonic() + seconds
    with DeviceReader(device, exclusive=True) as reader:
        size = reader.size_bytes
        spans = data_spans(reader) if extents is None else _checked(extents, reader)
        edges = [(0, _EDGE_BYTES), (max(0, size - _EDGE_BYTES), _EDGE_BYTES)]
        for offset, length in _chunks([*spans, *edges], size):
            if time.monotonic() > until:
                raise DeviceUnclear(
                    f"{reader.name}: reading it took longer than {seconds:.0f} s and got as far as byte {offset} of "
                    f"{size}. Only zeros so far, but that is no proof; it is not formatted"
                )
            _refuse_data(reader.read(offset, length), offset, reader.name)
        return BlankProof(device=reader.name, identity=reader.identity, size_bytes=size)


def identify(device: StrPath) -> BlankProof:
    """Return what ``read_blank`` would, without reading: for a caller who knows how the bytes got there."""
    with DeviceReader(device, exclusive=True) as reader:
        return BlankProof(device=reader.name, identity=reader.identity, size_bytes=reader.size_bytes)


def _checked(extents: Iterable[Extent], reader: DeviceReader) -> list[Extent]:
    spans = list(extents)
    for offset, length in spans:
        if offset < 0 or length < 0 or offset + length > reader.size_bytes:
            raise DeviceUnclear(
                f"{reader.name}: the backend says that bytes {offset} to {offset + length} are allocated, but the "
                f"device has {reader.size_bytes}: it is not the device that was asked about"
            )
    return spans


def _chunks(spans: Iterable[Extent], size_bytes: int) -> Iterator[Extent]:
    """Yield the spans as aligned pieces no longer than a chunk, in order, nothing twice."""
    done = 0
    for offset, length in sorted(spans):
        start = max(done, offset // _ALIGNMENT_BYTES * _ALIGNMENT_BYTES)
        end = min(-(-(offset + length) // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES, size_bytes)
        for position in range(start, end, CHUNK_BYTES):
            yield position, min(CHUNK_BYTES, end - position)
        done = max(done, end)


def _refuse_data(content: bytes, offset: int, device: str) -> None:
    if content == _ZEROS[: len(content)]:
        return
    position = offset + len(content) - len(content.lstrip(b"\0"))
    raise DeviceNotBlank(
        f"{device} has data at byte {position} although no filesystem is recognized on it; it is not formatted. "
        "If the data matters, recover it (a damaged filesystem: e2fsck -b, xfs_repair); if it does not, make the "
        "device read as zeros (blkdiscard --zeroout) and try again"
    )
