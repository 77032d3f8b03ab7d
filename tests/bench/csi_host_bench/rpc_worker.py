"""A caller of the driver: CSI's calls over the socket, as the sidecars make them."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc

from csi_host.proto import csi_pb2, csi_pb2_grpc

from .callers import CallError
from .sizes import EXPANDED_BYTES, VOLUME_BYTES
from .worker import Functions, work

_SECONDS = 120.0
_Mode = csi_pb2.VolumeCapability.AccessMode
_Rpc = csi_pb2.ControllerServiceCapability.RPC


class Driver:
    """The controller's RPCs; what is asked for is given by names and handles alone."""

    def __init__(self, channel: grpc.Channel, *, parameters: Mapping[str, str], secrets: Mapping[str, str]) -> None:
        self._controller = csi_pb2_grpc.ControllerStub(channel)
        self._parameters = dict(parameters)
        self._secrets = dict(secrets)

    def functions(self) -> Functions:
        """Return what it can be told to do, by name."""
        return {
            "capabilities": self.capabilities,
            "create": self.create,
            "expand": self.expand,
            "snapshot": self.snapshot,
            "restore": self.restore,
            "clone": self.clone,
            "delete": self.delete,
            "delete_snapshot": self.delete_snapshot,
            "list": self.list,
        }

    def capabilities(self, _: object) -> list[str]:
        """Return the names of what the controller says it can do."""
        answer = self._controller.ControllerGetCapabilities(csi_pb2.ControllerGetCapabilitiesRequest())
        return [_Rpc.Type.Name(each.rpc.type) for each in answer.capabilities]

    def create(self, name: str) -> str:
        """Call CreateVolume and return the handle."""
        return self._create(name, None, VOLUME_BYTES)

    def restore(self, item: list[str]) -> str:
        """Call CreateVolume for a name and a snapshot's handle."""
        name, snapshot_id = item
        snapshot = csi_pb2.VolumeContentSource.SnapshotSource(snapshot_id=snapshot_id)
        return self._create(name, csi_pb2.VolumeContentSource(snapshot=snapshot), EXPANDED_BYTES)

    def clone(self, item: list[str]) -> str:
        """Call CreateVolume for a name and a volume's handle."""
        name, volume_id = item
        volume = csi_pb2.VolumeContentSource.VolumeSource(volume_id=volume_id)
        return self._create(name, csi_pb2.VolumeContentSource(volume=volume), EXPANDED_BYTES)

    def expand(self, volume_id: str) -> int:
        """Call ControllerExpandVolume and return the new size."""
        request = csi_pb2.ControllerExpandVolumeRequest(
            volume_id=volume_id,
            capacity_range=csi_pb2.CapacityRange(required_bytes=EXPANDED_BYTES),
            secrets=self._secrets,
        )
        return int(self._controller.ControllerExpandVolume(request, timeout=_SECONDS).capacity_bytes)

    def snapshot(self, item: list[str]) -> str:
        """Call CreateSnapshot for a name and a volume's handle; return the snapshot's."""
        name, volume_id = item
        request = csi_pb2.CreateSnapshotRequest(
            name=name,
            source_volume_id=volume_id,
            secrets=self._secrets,
            parameters={"clusterID": self._parameters["clusterID"]},
        )
        return self._controller.CreateSnapshot(request, timeout=_SECONDS).snapshot.snapshot_id

    def delete(self, volume_id: str) -> None:
        """Call DeleteVolume."""
        request = csi_pb2.DeleteVolumeRequest(volume_id=volume_id, secrets=self._secrets)
        self._controller.DeleteVolume(request, timeout=_SECONDS)

    def delete_snapshot(self, snapshot_id: str) -> None:
        """Call DeleteSnapshot."""
        request = csi_pb2.DeleteSnapshotRequest(snapshot_id=snapshot_id, secrets=self._secrets)
        self._controller.DeleteSnapshot(request, timeout=_SECONDS)

    def list(self, item: list[Any]) -> list[Any]:
        """Call ListVolumes for a page of so many entries after a token; return the handles and the next token."""
        entries, token = item
        request = csi_pb2.ListVolumesRequest(max_entries=entries, starting_token=token)
        answer = self._controller.ListVolumes(request, timeout=_SECONDS)
        return [[entry.volume.volume_id for entry in answer.entries], answer.next_token]

    def _create(self, name: str, source: csi_pb2.VolumeContentSource | None, required_bytes: int) -> str:
        request = csi_pb2.CreateVolumeRequest(
            name=name,
            capacity_range=csi_pb2.CapacityRange(required_bytes=required_bytes),
            volume_capabilities=[
                csi_pb2.VolumeCapability(
                    mount=csi_pb2.VolumeCapability.MountVolume(fs_type="ext4"),
                    access_mode=_Mode(mode=_Mode.SINGLE_NODE_WRITER),
                )
            ],
            parameters=self._parameters,
            secrets=self._secrets,
            volume_content_source=source,
        )
        return self._controller.CreateVolume(request, timeout=_SECONDS).volume.volume_id


def _refusing(function: Any) -> Any:
    def call(item: Any) -> Any:
        try:
            return function(item)
        except grpc.RpcError as error:
            raise CallError(error.code().name, error.details() or "") from error

    return call


def main(endpoint: str, secret_file: str, parameters: str) -> None:
    """Call the driver at an endpoint; ``parameters`` is the StorageClass's as JSON."""
    secrets = json.loads(Path(secret_file).read_text(encoding="utf-8"))
    with grpc.insecure_channel(endpoint) as channel:
        driver = Driver(channel, parameters=json.loads(parameters), secrets=secrets)
        work({name: _refusing(function) for name, function in driver.functions().items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
