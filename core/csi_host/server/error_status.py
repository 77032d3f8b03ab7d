import secrets
from dataclasses import dataclass
from itertools import accumulate

import grpc

from csi_host.errors import CsiError
from csi_host.logs import Scrubber

# gRPC refuses more than 8 KiB of headers, in which a status message stands percent-encoded.
MAX_MESSAGE_BYTES = 4096
_ELLIPSIS = "..."


@dataclass(frozen=True, kw_only=True)
class Status:
    """What a failed call ends with; ``reference`` is set when the log says more than the caller is told."""

    code: grpc.StatusCode
    message: str
    reference: str = ""


def status_of(error: BaseException, scrub: Scrubber) -> Status:
    """Return the status for what a handler raised: a CsiError's own, or INTERNAL without any text of the error's."""
    if isinstance(error, CsiError):
        return Status(code=error.code, message=bounded(scrub(str(error) or type(error).__name__)))
    reference = secrets.token_hex(8)
    return Status(
        code=grpc.StatusCode.INTERNAL,
        message=f"unexpected error; the driver's log has the details under reference {reference}",
        reference=reference,
    )


def bounded(message: str) -> str:
    """Return as much of ``message`` as fits into a status."""
    sizes = accumulate(_encoded_bytes(character) for character in message)
    fitting = sum(size <= MAX_MESSAGE_BYTES - len(_ELLIPSIS) for size in sizes)
    whole = sum(_encoded_bytes(character) for character in message) <= MAX_MESSAGE_BYTES
    return message if whole else message[:fitting] + _ELLIPSIS


def _encoded_bytes(character: str) -> int:
    return 1 if " " <= character <= "~" and character != "%" else 3 * len(character.encode(errors="replace"))
