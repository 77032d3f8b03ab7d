"""What the Ceph bindings raise, as the outcomes of CSI.

By class first, then by errno: most errnos have no class of their own, and the bindings' ``OSError``,
``PermissionError`` and ``IOError`` are not the builtins. The message says what was attempted and on what.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from csi_host.errors import (
    Aborted,
    AlreadyExists,
    CsiError,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from csi_host.errors import PermissionDenied as PermissionDeniedError
from csi_host_rbd.ceph.bindings import rados, rbd


class ImageNotFound(NotFound):
    """There is no such image, or what is left of it cannot be opened."""


class ObjectNotFound(NotFound):
    """There is no such RADOS object."""


class PoolNotFound(NotFound):
    """The cluster has no pool of this name or id."""


class NamespaceNotFound(NotFound):
    """The pool has no such RADOS namespace; nobody but the administrator makes one."""


class ImageExists(AlreadyExists):
    """The image's name is taken."""


class ObjectExists(AlreadyExists):
    """The RADOS object is there already."""


class KeyMismatch(Aborted):
    """An omap key does not have the value that the write was conditional on: somebody else wrote it."""


class ImageBusy(FailedPrecondition):
    """Somebody uses the image."""


class ImageHasSnapshots(FailedPrecondition):
    """The image has snapshots, and so cannot be removed."""


class ImageInGroup(FailedPrecondition):
    """The image is in a group of librbd's, and can neither be in another one nor be removed."""


class ImageReadOnly(FailedPrecondition):
    """The image was opened for reading only, or is a mirror's secondary."""


class BackendTimeout(DeadlineExceeded):
    """Ceph did not answer in time; the operation may still happen."""


class BackendUnavailable(Unavailable):
    """The cluster cannot be reached, or has shut this client out."""


class Blocklisted(BackendUnavailable):
    """The cluster refuses this client's connection for good; only a new connection helps."""


class AuthenticationRefused(Unauthenticated):
    """The cluster does not know the user or refuses its key."""


class PermissionDenied(PermissionDeniedError):
    """The user's capabilities do not allow the operation."""


class PoolFull(ResourceExhausted):
    """The cluster, the pool or its quota is full."""


class ArgumentRefused(InvalidArgument):
    """Ceph does not take a value: features that do not go together, a stripe that does not fit, an unknown command."""


class CephRefused(Internal):
    """Ceph failed in a way that has no name here; the message holds the errno."""


# The classes of the two bindings that are sharper than their errno.
_BY_CLASS: tuple[tuple[type[Exception], type[CsiError]], ...] = (
    (rbd.ImageNotFound, ImageNotFound),
    (rbd.ImageExists, ImageExists),
    (rbd.ImageBusy, ImageBusy),
    (rbd.ImageHasSnapshots, ImageHasSnapshots),
    (rbd.ReadOnlyImage, ImageReadOnly),
    (rbd.InvalidArgument, ArgumentRefused),
    (rados.RadosStateError, BackendUnavailable),
    (rados.IoctxStateError, BackendUnavailable),
)
_BY_ERRNO: dict[int, type[CsiError]] = {
    errno.ENOENT: ObjectNotFound,
    errno.EEXIST: ObjectExists,
    errno.ECANCELED: KeyMismatch,
    errno.EBUSY: ImageBusy,
    errno.ENOTEMPTY: ImageHasSnapshots,
    errno.EROFS: ImageReadOnly,
    errno.EMLINK: ImageInGroup,
    errno.EINVAL: ArgumentRefused,
    errno.EDOM: ArgumentRefused,
    errno.ERANGE: ArgumentRefused,
    errno.E2BIG: ArgumentRefused,
    errno.ENAMETOOLONG: ArgumentRefused,
    errno.EPERM: PermissionDenied,
    errno.EACCES: PermissionDenied,
    errno.ENOSPC: PoolFull,
    errno.EDQUOT: PoolFull,
    errno.ETIMEDOUT: BackendTimeout,
    errno.EAGAIN: BackendUnavailable,  # the manager is up, but its module is not yet
    errno.ENOTCONN: BackendUnavailable,
    errno.ECONNREFUSED: BackendUnavailable,
    errno.ECONNRESET: BackendUnavailable,
    errno.EHOSTUNREACH: BackendUnavailable,
    errno.ENETUNREACH: BackendUnavailable,
    errno.ESHUTDOWN: Blocklisted,  # Ceph's EBLOCKLISTED is this number
}


@contextmanager
def translated(step: str) -> Iterator[None]:
    """Raise what the bindings raise inside of the ``with`` as one of this module's classes.

    ``step`` says what is attempted and on what ("creating image pool/namespace/name"); the message begins with it.
    """
    try:
        yield
    except (rados.Error, rbd.Error) as error:
        raise error_of(error, step) from error


@contextmanager
def translated_connect(user: str, monitors: str) -> Iterator[None]:
    """Raise what connecting raises: AuthenticationRefused, else BackendUnavailable; the key is never in the text."""
    step = f"connecting to {monitors} as client.{user}"
    try:
        yield
    except rados.Error as error:
        number = errno_of(error)
        # Neither is chained: the binding's own message may hold what it was given.
        if number in {errno.EPERM, errno.EACCES}:
            raise AuthenticationRefused(f"{step}: refused; the user is unknown or its key is wrong") from None
        if number in {errno.EINVAL, errno.ENOENT}:
            raise BackendUnavailable(f"{step}: librados cannot make sense of these monitors") from None
        raise BackendUnavailable(f"{step}: {_reason(number) or 'it failed'}") from None


def error_of(error: Exception, step: str) -> CsiError:
    """Return the failure that an exception of the bindings stands for."""
    number = errno_of(error)
    found = next((ours for theirs, ours in _BY_CLASS if isinstance(error, theirs)), None)
    kind = found or _BY_ERRNO.get(number, CephRefused)
    return kind(f"{step}: {_reason(number) or error}")


def errno_of(error: Exception) -> int:
    """Return the positive errno of an exception of the bindings, 0 when it has none."""
    number = getattr(error, "errno", None)
    return abs(number) if isinstance(number, int) else 0


def _reason(number: int) -> str:
    if number == 0:
        return ""
    if number == errno.ETIMEDOUT:
        return "Ceph did not answer in time"
    if number == errno.ESHUTDOWN:
        return "the cluster has blocklisted this client"
    return f"{os.strerror(number)} (errno {number})"
