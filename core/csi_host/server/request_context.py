import re
import secrets
import time

import grpc

from csi_host.request import Request

REQUEST_ID_KEY = "csi.requestid"
_REQUEST_ID = re.compile(r"[!-~]{1,128}")
# gRPC gives a call without a deadline one that is centuries away.
_NO_DEADLINE_SECONDS = 10 * 365 * 24 * 3600.0


def begin(rpc: str, context: grpc.ServicerContext) -> Request:
    """Return the request that comes in, its id given back to the caller as trailing metadata."""
    request_id = _request_id(context)
    context.set_trailing_metadata(((REQUEST_ID_KEY, request_id),))
    remaining = context.time_remaining()
    has_deadline = remaining is not None and remaining < _NO_DEADLINE_SECONDS
    return Request(rpc=rpc, request_id=request_id, deadline=time.monotonic() + remaining if has_deadline else None)


def _request_id(context: grpc.ServicerContext) -> str:
    for key, value in context.invocation_metadata() or ():
        # Only text that cannot break a log line or a header is taken over.
        if key == REQUEST_ID_KEY and isinstance(value, str) and _REQUEST_ID.fullmatch(value):
            return value
    return secrets.token_hex(8)
