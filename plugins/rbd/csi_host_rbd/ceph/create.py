"""Images made: from nothing, and as clones of a snapshot."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from csi_host_rbd.ceph.bindings import rbd
from csi_host_rbd.ceph.calls import call, write
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.failures import ArgumentRefused, ImageNotFound, NamespaceNotFound, PoolNotFound


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """How an image is laid out; None and 0 leave the choice to librbd. ``order`` is log2 of the object size."""

    features: int | None = None
    order: int | None = None
    stripe_unit_bytes: int = 0
    stripe_count: int = 0
    data_pool: str = ""

    def for_librbd(self) -> dict[str, Any]:
        """Return them as librbd's arguments."""
        return {
            "features": self.features,
            "order": self.order,
            "stripe_unit": self.stripe_unit_bytes or None,
            "stripe_count": self.stripe_count or None,
            "data_pool": self.data_pool or None,
        }


@dataclass(frozen=True, kw_only=True)
class SnapshotSpec:
    """A snapshot of an image, by names: what a clone is made of."""

    pool: Pool
    image: str
    snapshot: str


def create_image(pool: Pool, name: str, size_bytes: int, options: ImageOptions) -> None:
    """Make an image. 7 operations, one more with an object map.

    Raises ImageExists, NamespaceNotFound, PoolNotFound (the data pool), ArgumentRefused.
    """

    def create() -> None:
        rbd.RBD().create(pool.ioctx, name, size_bytes, old_format=False, **options.for_librbd())

    make_image(pool, name, "creating image", create, options)


def clone_image(source: SnapshotSpec, pool: Pool, name: str, options: ImageOptions) -> None:
    """Make an image whose content is a snapshot's. 36 operations, 49 when the source is a clone itself.

    The source need not be protected and may lose the snapshot later: then librbd keeps it out of sight for as long as
    the clone needs it. Metadata of the source is copied. Raises what ``create_image`` does; ImageNotFound also for a
    source or a snapshot that is gone.
    """

    def clone() -> None:
        rbd.RBD().clone(source.pool.ioctx, source.image, source.snapshot, pool.ioctx, name, **options.for_librbd())

    action = f"cloning {source.pool.spec(source.image)}@{source.snapshot} to image"
    try:
        make_image(pool, name, action, clone, options)
    except ArgumentRefused as error:
        if options.order is None:
            raise
        raise ArgumentRefused(f"{error}; a clone needs objects as big as its source's, or bigger") from error


def make_image(pool: Pool, name: str, action: str, make: Callable[[], None], options: ImageOptions) -> None:
    """Run what makes an image; raises NamespaceNotFound and PoolNotFound where librbd only says ImageNotFound."""
    try:
        write(pool, name, action, make)
    except ImageNotFound as error:
        if options.data_pool and not pool.has_sibling(options.data_pool):
            raise PoolNotFound(f"the data pool {options.data_pool!r} does not exist in the cluster") from error
        if pool.namespace and not _namespace_exists(pool):
            raise NamespaceNotFound(f"pool {pool.name} has no RADOS namespace {pool.namespace!r}") from error
        raise


def _namespace_exists(pool: Pool) -> bool:
    return bool(
        call(pool, "", "looking for the namespace of", lambda: rbd.RBD().namespace_exists(pool.ioctx, pool.namespace))
    )
