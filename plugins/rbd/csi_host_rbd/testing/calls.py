"""Calls of the Controller service as a CO makes them: the same one again until its outcome is known."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import Message

from csi_host.proto import csi_pb2, csi_pb2_grpc
from csi_host_rbd.testing.pools import PoolView
from csi_host_rbd.testing.rig import GIB, mounted

_CALL_SECONDS = 60.0
_PAUSE_SECONDS = 0.2
# After these nobody knows whether it has happened, and the CO calls again.
ASK_AGAIN = frozenset(
    {
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
    }
)
# What the CO repeats as well, where a watch of the dead process is in the way for as long as the OSD remembers it.
IN_USE = ASK_AGAIN | {grpc.StatusCode.FAILED_PRECONDITION}


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of an RPC."""

    rpc: str
    request: Message

    def __str__(self) -> str:
        shown = type(self.request)()
        shown.CopyFrom(self.request)
        shown.ClearField("secrets")
        return f"{self.rpc} {shown}".replace("\n", " ")

    def on(self, controller: csi_pb2_grpc.ControllerStub, *, seconds: float = _CALL_SECONDS) -> Any:
        """Make the call once."""
        return getattr(controller, self.rpc)(self.request, timeout=seconds, wait_for_ready=True)

    def until_known(
        self,
        controller: Callable[[], csi_pb2_grpc.ControllerStub],
        *,
        seconds: float,
        again_after: frozenset[grpc.StatusCode] = ASK_AGAIN,
    ) -> Any:
        """Make the call until it succeeds; raises the error that is none to call again after, or that of the last."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                return self.on(controller())
            except grpc.RpcError as error:
                if error.code() not in again_after or time.monotonic() > deadline:
                    raise
                time.sleep(_PAUSE_SECONDS)


@dataclass(frozen=True, kw_only=True)
class Calls:
    """The calls that fit a pool; ``class_parameters`` are added to a StorageClass's."""

    pool: PoolView
    class_parameters: tuple[tuple[str, str], ...] = ()

    def create(
        self,
        name: str,
        *,
        size_bytes: int = GIB,
        snapshot_id: str = "",
        volume_id: str = "",
        parameters: dict[str, str] | None = None,
    ) -> Call:
        """Return CreateVolume: from nothing, from a snapshot or from a volume."""
        usual = {"clusterID": self.pool.cluster.cluster_id, "pool": self.pool.name, "mounter": "qemu"}
        request = csi_pb2.CreateVolumeRequest(
            name=name,
            capacity_range=csi_pb2.CapacityRange(required_bytes=size_bytes),
            volume_capabilities=[mounted()],
            parameters=usual | {"imageFeatures": "layering"} | dict(self.class_parameters) | (parameters or {}),
            secrets=self.pool.cluster.secrets(),
        )
        if snapshot_id:
            request.volume_content_source.snapshot.snapshot_id = snapshot_id
        if volume_id:
            request.volume_content_source.volume.volume_id = volume_id
        return Call(rpc="CreateVolume", request=request)

    def delete(self, volume_id: str) -> Call:
        """Return DeleteVolume."""
        request = csi_pb2.DeleteVolumeRequest(volume_id=volume_id, secrets=self.pool.cluster.secrets())
        return Call(rpc="DeleteVolume", request=request)

    def expand(self, volume_id: str, size_bytes: int) -> Call:
        """Return ControllerExpandVolume."""
        request = csi_pb2.ControllerExpandVolumeRequest(
            volume_id=volume_id,
            capacity_range=csi_pb2.CapacityRange(required_bytes=size_bytes),
            secrets=self.pool.cluster.secrets(),
        )
        return Call(rpc="ControllerExpandVolume", request=request)

    def snapshot(self, volume_id: str, name: str, *, parameters: dict[str, str] | None = None) -> Call:
        """Return CreateSnapshot."""
        request = csi_pb2.CreateSnapshotRequest(
            source_volume_id=volume_id, name=name, parameters=parameters, secrets=self.pool.cluster.secrets()
        )
        return Call(rpc="CreateSnapshot", request=request)

    def delete_snapshot(self, snapshot_id: str) -> Call:
        """Return DeleteSnapshot."""
        request = csi_pb2.DeleteSnapshotRequest(snapshot_id=snapshot_id, secrets=self.pool.cluster.secrets())
        return Call(rpc="DeleteSnapshot", request=request)
