"""Opening the image of a volume or snapshot that the journal knows, and what it means when that fails.

librbd opens a clone with all that it hangs on. When one of those has just been filled or flattened and removed, opening
the clone fails as if the clone itself were missing, and works again a moment later. So before a CO is told NOT_FOUND,
which it believes for good, it is made sure that the image is really gone.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from csi_host.errors import Aborted, CsiError
from csi_host_rbd.ceph import image_names
from csi_host_rbd.ceph.failures import ImageNotFound
from csi_host_rbd.ceph.image import Image, open_image
from csi_host_rbd.reservations import Reservation


class ImageObscured(Aborted):
    """The image is there and cannot be opened, as an image that it hangs on has gone: a moment ago, or for good."""


@contextmanager
def opened(reservation: Reservation, what: str, missing: type[CsiError], *, read_only: bool) -> Iterator[Image]:
    """Yield the open image; ``what`` (a field and a handle) begins the message of an error.

    Raises ``missing`` when it is gone, ImageObscured when it is there nevertheless.
    """
    pool, name = reservation.pool, reservation.image_name
    with ExitStack() as stack:
        try:
            image = stack.enter_context(open_image(pool, name=name, read_only=read_only))
        except ImageNotFound as reason:
            if image_names.is_whole(pool, name):
                raise ImageObscured(
                    f"{what}: {reason}; it is there, but not all that it hangs on: ask again; if that does not "
                    "help, see `csi-host rbd fsck`"
                ) from reason
            raise missing(f"{what}: {reason}") from reason
        yield image


@contextmanager
def images_may_go() -> Iterator[None]:
    """End a call with ABORTED when an image goes that it did not name: NOT_FOUND is said of what a call names."""
    try:
        yield
    except ImageNotFound as reason:
        raise Aborted(f"an image went while this call was at work, ask again: {reason}") from reason
