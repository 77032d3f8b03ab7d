"""The image behind a volume that a node is asked to stage."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from csi_host.errors import FailedPrecondition, InvalidArgument
from csi_host_rbd.attach.attacher import AttachRequest, ImageSpec
from csi_host_rbd.backend import Backend, Cluster
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.failures import PoolNotFound
from csi_host_rbd.ceph.image import Image, open_image
from csi_host_rbd.clusters import ClusterNotConfigured
from csi_host_rbd.credentials import Credentials
from csi_host_rbd.errors import ClusterNotServed, VolumeNotFound
from csi_host_rbd.node.map_wishes import MapWishes
from csi_host_rbd.node.stash import Stash
from csi_host_rbd.parameters import parse_bool
from csi_host_rbd.volume_id import InvalidVolumeId, VolumeId

MARK_KEY = "csi-host/filesystem"


@dataclass(frozen=True, kw_only=True)
class NodeImage:
    """An image to stage, with what the volume's context says of it.

    ``is_static`` is a volume that an administrator made: it is never formatted.
    ``mkfs_options`` "" are the defaults. ``handle`` is the volume's.
    """

    cluster: Cluster
    pool: Pool
    name: str
    credentials: Credentials
    is_static: bool = False
    mounter: str = ""
    mkfs_options: str = ""
    handle: str = ""
    wishes: MapWishes = field(default_factory=MapWishes)

    @property
    def spec(self) -> ImageSpec:
        """What attachers call it."""
        return ImageSpec(
            cluster_id=self.cluster.config.cluster_id,
            pool=self.pool.name,
            namespace=self.pool.namespace,
            image=self.name,
            volume_id=self.handle,
            fsid=self.cluster.connection.fsid,
        )

    @property
    def mirror_daemon_count(self) -> int:
        """How many watchers a mirrored image has of mirroring itself."""
        return self.cluster.config.mirror_daemon_count

    def attach_request(self, *, read_only: bool, mounter: str) -> AttachRequest:
        """Return what attaching it through ``mounter`` takes."""
        namespace = self.cluster.config.net_namespace_file
        return AttachRequest(
            spec=self.spec,
            mon_host=self.cluster.config.mon_host,
            user=self.credentials.user_id,
            key=self.credentials.key,
            read_only=read_only,
            map_options=self.wishes.map_options.get(mounter, ""),
            network_namespace=Path(namespace) if namespace else None,
        )

    def stash(self, volume_id: str, mounter: str) -> Stash:
        """Return what has to be known of it when there are no secrets at hand."""
        return Stash(
            pool=self.pool.name,
            namespace=self.pool.namespace,
            image=self.name,
            cluster_id=self.cluster.config.cluster_id,
            volume_id=volume_id,
            mounter=mounter,
            fsid=self.cluster.connection.fsid,
            unmap_options=self.wishes.unmap_options.get(mounter, ""),
        )

    @contextmanager
    def opened(self) -> Iterator[Image]:
        """Yield the open image, read-only, which registers no watch."""
        with open_image(self.pool, name=self.name, read_only=True) as image:
            yield image

    def allocated_extents(self) -> list[tuple[int, int]]:
        """Return the (offset, length) in bytes of everything that was ever written."""
        with self.opened() as image:
            return image.allocated_extents()

    def read_mark(self) -> str | None:
        """Return the mark that says whether the image has been formatted."""
        with self.opened() as image:
            return image.metadata().get(MARK_KEY)

    def write_mark(self, text: str) -> None:
        """Replace the mark; it is on the cluster when this returns."""
        with open_image(self.pool, name=self.name) as image:
            image.set_metadata(MARK_KEY, text)


class NodeImages:
    """Finds the image of a volume: through the journal, or by name where an administrator made the volume."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    @contextmanager
    def find(self, volume_id: str, context: Mapping[str, str], credentials: Credentials) -> Iterator[NodeImage]:
        """Yield the image, its cluster's connection being held for as long.

        Raises VolumeNotFound, ClusterNotServed, InvalidArgument naming what the context lacks, and what the cluster
        fails with.
        """
        if _is_true(context, "encrypted"):
            raise FailedPrecondition("volume_context[encrypted]: encrypted volumes are not served by this version")
        is_static = _is_true(context, "staticVolume")
        cluster_id = _required(context, "clusterID") if is_static else _parsed(volume_id).cluster_id
        with ExitStack() as connections:
            try:
                cluster = connections.enter_context(self._backend.open(cluster_id, credentials))
            except ClusterNotConfigured as reason:
                raise ClusterNotServed(f"volume_id: {reason}") from reason
            pool, name = (
                _static_place(cluster, volume_id, context) if is_static else self._place(cluster, _parsed(volume_id))
            )
            yield NodeImage(
                cluster=cluster,
                pool=pool,
                name=name,
                credentials=credentials,
                is_static=is_static,
                mounter=context.get("mounter", ""),
                mkfs_options=context.get("mkfsOptions", ""),
                handle=volume_id,
                wishes=MapWishes.of(context),
            )

    def _place(self, cluster: Cluster, volume_id: VolumeId) -> tuple[Pool, str]:
        try:
            pool = cluster.pool_with_id(volume_id.pool_id)
        except PoolNotFound as reason:
            raise VolumeNotFound(f"volume_id: {volume_id}: {reason}") from reason
        reservation = self._backend.journal(cluster, pool).read(volume_id.uuid)
        if reservation is None:
            raise VolumeNotFound(f"volume_id: the journal of pool {pool.name} does not know {volume_id}")
        return reservation.pool, reservation.image_name


def _parsed(volume_id: str) -> VolumeId:
    try:
        return VolumeId.parse(volume_id)
    except InvalidVolumeId as reason:
        raise VolumeNotFound(f"volume_id: no volume of this driver has the handle {volume_id!r}: {reason}") from reason


def _static_place(cluster: Cluster, volume_id: str, context: Mapping[str, str]) -> tuple[Pool, str]:
    # The handle is the image's name, but for volumes that were migrated from Kubernetes' own driver.
    name = _required(context, "imageName") if _is_true(context, "migration") else volume_id
    return cluster.pool(_required(context, "pool")), name


def _required(context: Mapping[str, str], name: str) -> str:
    value = context.get(name, "")
    if not value:
        raise InvalidArgument(f"volume_context[{name}]: required for a static volume")
    return value


def _is_true(context: Mapping[str, str], name: str) -> bool:
    try:
        return bool(context.get(name)) and parse_bool(name, context[name])
    except InvalidArgument:
        raise InvalidArgument(f"volume_context[{name}]: expected true or false, got {context[name]!r}") from None
