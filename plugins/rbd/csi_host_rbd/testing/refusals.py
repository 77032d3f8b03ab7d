"""Calls that are to fail."""

from collections.abc import Callable
from typing import Any

import grpc


def refusal(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    """Return the status that a call ends with; raises AssertionError when it succeeds."""
    try:
        answer = call()
    except grpc.RpcError as error:
        return error.code(), error.details() or ""
    raise AssertionError(f"the call succeeded: {answer}")
