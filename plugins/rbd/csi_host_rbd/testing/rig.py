"""The rbd driver behind a real socket, on a dev cluster, for tests."""

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from csi_host.kms import KmsTypes
from csi_host.process import run
from csi_host.proto import csi_pb2
from csi_host.testing.contexts import host_context
from csi_host.testing.server import Served, serving
from csi_host_rbd.ceph.writes import WriteObserver
from csi_host_rbd.driver import create_driver
from csi_host_rbd.encryption.providers import built_in_kms_types
from csi_host_rbd.options import OPTIONS
from csi_host_rbd.testing.operations import OperationCounter
from csi_host_rbd.testing.pools import PoolView

GIB = 1024**3
# Longer than anything takes on a cluster that is well; a machine without KVM needs longer.
SECONDS = float(os.environ.get("CSI_HOST_TEST_CALL_SECONDS", "60"))

_Mode = csi_pb2.VolumeCapability.AccessMode


def mounted(mode: _Mode.Mode.ValueType = _Mode.SINGLE_NODE_WRITER, fs_type: str = "xfs") -> csi_pb2.VolumeCapability:
    """Return the capability of a filesystem volume."""
    return csi_pb2.VolumeCapability(
        mount=csi_pb2.VolumeCapability.MountVolume(fs_type=fs_type), access_mode=_Mode(mode=mode)
    )


def block(mode: _Mode.Mode.ValueType = _Mode.SINGLE_NODE_WRITER) -> csi_pb2.VolumeCapability:
    """Return the capability of a block volume."""
    return csi_pb2.VolumeCapability(block=csi_pb2.VolumeCapability.BlockVolume(), access_mode=_Mode(mode=mode))


@dataclass(frozen=True, kw_only=True)
class RbdRig:
    """A served rbd driver, a pool, and the requests that fit them."""

    served: Served
    pool: PoolView
    counter: OperationCounter
    secrets: dict[str, str]

    def parameters(self, **changes: str) -> dict[str, str]:
        """Return a StorageClass's parameters."""
        usual = {"clusterID": self.pool.cluster.cluster_id, "pool": self.pool.name, "mounter": "qemu"}
        return usual | {"imageFeatures": "layering"} | changes

    def create_request(self, name: str, **changes: Any) -> csi_pb2.CreateVolumeRequest:
        """Return the request for a filesystem volume of 1 GiB, with whole fields of it changed."""
        fields: dict[str, Any] = {
            "capacity_range": csi_pb2.CapacityRange(required_bytes=GIB),
            "volume_capabilities": [mounted()],
            "parameters": self.parameters(),
            "secrets": self.secrets,
        }
        return csi_pb2.CreateVolumeRequest(name=name, **(fields | changes))

    def create(self, name: str, **changes: Any) -> csi_pb2.Volume:
        """Call CreateVolume."""
        return self.served.controller.CreateVolume(self.create_request(name, **changes), timeout=SECONDS).volume

    def delete(self, volume_id: str) -> None:
        """Call DeleteVolume."""
        request = csi_pb2.DeleteVolumeRequest(volume_id=volume_id, secrets=self.secrets)
        self.served.controller.DeleteVolume(request, timeout=SECONDS)

    def expand(self, volume_id: str, required_bytes: int, **changes: Any) -> csi_pb2.ControllerExpandVolumeResponse:
        """Call ControllerExpandVolume."""
        capacity = csi_pb2.CapacityRange(required_bytes=required_bytes)
        fields: dict[str, Any] = {"capacity_range": capacity, "secrets": self.secrets}
        request = csi_pb2.ControllerExpandVolumeRequest(volume_id=volume_id, **(fields | changes))
        return self.served.controller.ControllerExpandVolume(request, timeout=SECONDS)

    def snapshot(self, volume_id: str, name: str, **changes: Any) -> csi_pb2.Snapshot:
        """Call CreateSnapshot."""
        fields: dict[str, Any] = {"secrets": self.secrets}
        request = csi_pb2.CreateSnapshotRequest(source_volume_id=volume_id, name=name, **(fields | changes))
        return self.served.controller.CreateSnapshot(request, timeout=SECONDS).snapshot

    def delete_snapshot(self, snapshot_id: str) -> None:
        """Call DeleteSnapshot."""
        request = csi_pb2.DeleteSnapshotRequest(snapshot_id=snapshot_id, secrets=self.secrets)
        self.served.controller.DeleteSnapshot(request, timeout=SECONDS)

    def restore(self, snapshot_id: str, name: str, **changes: Any) -> csi_pb2.Volume:
        """Call CreateVolume from a snapshot."""
        snapshot = csi_pb2.VolumeContentSource.SnapshotSource(snapshot_id=snapshot_id)
        return self.create(name, volume_content_source=csi_pb2.VolumeContentSource(snapshot=snapshot), **changes)

    def clone(self, volume_id: str, name: str, **changes: Any) -> csi_pb2.Volume:
        """Call CreateVolume from a volume."""
        volume = csi_pb2.VolumeContentSource.VolumeSource(volume_id=volume_id)
        return self.create(name, volume_content_source=csi_pb2.VolumeContentSource(volume=volume), **changes)


def write_clusters_file(pool: PoolView, directory: Path) -> Path:
    """Write the ``config.json`` that makes the pool's RADOS namespace the driver's."""
    entry = {
        "clusterID": pool.cluster.cluster_id,
        "monitors": pool.cluster.monitors,
        "rbd": {"radosNamespace": pool.namespace},
    }
    path = directory / "config.json"
    path.write_text(json.dumps([entry]), encoding="utf-8")
    return path


def rbd_kms_types() -> KmsTypes:
    """Return the kinds of KMS that the rbd driver's plugin brings."""
    return KmsTypes((each, "csi-host") for each in built_in_kms_types())


@contextmanager
def rbd_rig(
    pool: PoolView,
    directory: Path,
    *,
    options: dict[str, Any] | None = None,
    workers: int = 40,
    observers: Sequence[WriteObserver] = (),
    **overrides: Any,
) -> Iterator[RbdRig]:
    """Serve the rbd driver on ``pool``; ``options`` are the driver's, ``overrides`` fields of HostContext.

    ``observers`` hear of every durable step.
    """
    settings: dict[str, Any] = {option.name: option.default for option in OPTIONS} | {
        "cephcsiconfig": write_clusters_file(pool, directory),
        "qemudirectory": directory / "qemu",
        "kmsconfig": directory / "kms.json",
        "controllersecret": pool.cluster.secret_file,
    }
    context = host_context(directory, options=settings | (options or {}), run=run, kms_types=rbd_kms_types())
    with tempfile.TemporaryDirectory(prefix="csi-asok-") as sockets:
        counter = OperationCounter(Path(sockets))
        driver = create_driver(replace(context, **overrides), ceph_settings=counter.settings, observers=observers)
        try:
            with serving(driver, workers=workers) as served:
                yield RbdRig(served=served, pool=pool, counter=counter, secrets=pool.cluster.secrets())
        finally:
            driver.close()
