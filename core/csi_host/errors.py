"""The errors an RPC can end with: one class per CSI outcome, each carrying its gRPC code.

A driver names its own facts by subclassing (``class ImageNotFound(NotFound)``); one interceptor turns them into a
status. What the caller may conclude from a code is in the CSI spec's error schemes and in what the sidecars do:
ABORTED, DEADLINE_EXCEEDED and UNAVAILABLE mean "it may still be happening, ask again"; every other code is final,
so raise it only when nothing was left behind.
"""

from typing import ClassVar

from grpc import StatusCode

_ASK_AGAIN = frozenset({StatusCode.ABORTED, StatusCode.DEADLINE_EXCEEDED, StatusCode.UNAVAILABLE})


class CsiError(Exception):
    """What an RPC failed with; the message goes to the caller as it is, so it never holds a secret."""

    code: ClassVar[StatusCode] = StatusCode.INTERNAL

    @property
    def is_final(self) -> bool:
        """Whether the caller takes the operation as over, so that nothing may be left of it."""
        return self.code not in _ASK_AGAIN


class InvalidArgument(CsiError):
    """A field of the request is missing or wrong; the message names the field and what was expected."""

    code = StatusCode.INVALID_ARGUMENT


class NotFound(CsiError):
    """The volume, snapshot, node or path does not exist."""

    code = StatusCode.NOT_FOUND


class AlreadyExists(CsiError):
    """The name is taken by something that does not fit the request."""

    code = StatusCode.ALREADY_EXISTS


class FailedPrecondition(CsiError):
    """The request is well formed, but the state of the volume or of the machine forbids it."""

    code = StatusCode.FAILED_PRECONDITION


class OutOfRange(CsiError):
    """The asked size or offset cannot be served."""

    code = StatusCode.OUT_OF_RANGE


class ResourceExhausted(CsiError):
    """No space or no slots left; the provisioner then looks for another node."""

    code = StatusCode.RESOURCE_EXHAUSTED


class Unimplemented(CsiError):
    """The driver does not serve this RPC."""

    code = StatusCode.UNIMPLEMENTED


class PermissionDenied(CsiError):
    """The credentials were accepted but do not allow the operation."""

    code = StatusCode.PERMISSION_DENIED


class Unauthenticated(CsiError):
    """The credentials were refused."""

    code = StatusCode.UNAUTHENTICATED


class Aborted(CsiError):
    """Something else is at it; ask again."""

    code = StatusCode.ABORTED


class OperationPending(Aborted):
    """Another call holds the lock of this volume, snapshot or name."""


class DeadlineExceeded(CsiError):
    """Our own time ran out; the work may still happen, ask again."""

    code = StatusCode.DEADLINE_EXCEEDED


class Unavailable(CsiError):
    """The backend or this server is down; ask again."""

    code = StatusCode.UNAVAILABLE


class Internal(CsiError):
    """Something failed that the caller cannot mend; final, so nothing may have been left behind."""

    code = StatusCode.INTERNAL
