"""The SnapshotMetadata service: blocks of snapshots as streams of messages.

Ranges have different lengths (VARIABLE_LENGTH). What is found is whole objects or parts of them, each volume has
objects of its own size, and neighbours are made one range: a volume that is written all over needs few. With
FIXED_LENGTH the smallest part that may be found would have to be every tuple's size.

A stream holds no more than a part of what is found at a time, whatever the reader's pace: gRPC takes the next message
only when the last one was sent. A reader that leaves is noticed after each part.
"""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import grpc

from csi_host.driver import HostContext
from csi_host.proto import csi_pb2
from csi_host.services.snapshot_metadata import SnapshotMetadataServer
from csi_host_rbd.block_search import Blocks
from csi_host_rbd.ceph.extents import Extent, merged
from csi_host_rbd.changed_blocks import ChangedBlocks

# A tuple has up to 22 bytes, and clients take messages of 4 MiB.
_USUAL_RESULTS = 1_000
_MOST_RESULTS = 10_000

Response = TypeVar("Response", csi_pb2.GetMetadataAllocatedResponse, csi_pb2.GetMetadataDeltaResponse)


class RbdSnapshotMetadataServer(SnapshotMetadataServer):
    """What snapshots have allocated, and what changed from one to another."""

    def __init__(self, context: HostContext, *, blocks: ChangedBlocks) -> None:
        super().__init__(context)
        self._blocks = blocks

    def GetMetadataAllocated(
        self, request: csi_pb2.GetMetadataAllocatedRequest, context: grpc.ServicerContext
    ) -> Iterator[csi_pb2.GetMetadataAllocatedResponse]:
        """Stream what a snapshot has allocated, what it has of a volume's own source included."""
        with self._blocks.allocated(request.snapshot_id, request.secrets, start=request.starting_offset) as blocks:
            for page in _pages(blocks, request.max_results, context):
                yield _message(csi_pb2.GetMetadataAllocatedResponse, blocks, page)

    def GetMetadataDelta(
        self, request: csi_pb2.GetMetadataDeltaRequest, context: grpc.ServicerContext
    ) -> Iterator[csi_pb2.GetMetadataDeltaResponse]:
        """Stream what may differ between two snapshots of a volume; what is not named is the same in both."""
        with self._blocks.delta(
            request.base_snapshot_id, request.target_snapshot_id, request.secrets, start=request.starting_offset
        ) as blocks:
            for page in _pages(blocks, request.max_results, context):
                yield _message(csi_pb2.GetMetadataDeltaResponse, blocks, page)


def _message(response: type[Response], blocks: Blocks, page: Sequence[Extent]) -> Response:
    return response(
        block_metadata_type=csi_pb2.VARIABLE_LENGTH,
        volume_capacity_bytes=blocks.size_bytes,
        block_metadata=[csi_pb2.BlockMetadata(byte_offset=one.offset, size_bytes=one.length) for one in page],
    )


def _pages(blocks: Blocks, max_results: int, context: grpc.ServicerContext) -> Iterator[Sequence[Extent]]:
    """Yield pages of at most ``max_results`` extents that do not touch each other; the last one may be empty."""
    size = min(max_results or _USUAL_RESULTS, _MOST_RESULTS)
    waiting: list[Extent] = []
    for part in blocks.parts:
        waiting = list(merged([*waiting, *part]))
        # The last one may go on in the next part.
        ready, waiting = waiting[:-1], waiting[-1:]
        for start in range(0, len(ready), size):
            yield ready[start : start + size]
        if not context.is_active():
            # Nobody gets it; gRPC closes the stream of a reader that has left when it is given something to send.
            yield ()
    yield waiting
