"""The same work on many things at once, as each is a round trip to the cluster."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")

_THREADS = 8


def in_parallel(function: Callable[[T], U], items: Sequence[T]) -> list[U]:
    """Return ``function`` of each item, in their order; the first failure is raised and ends what was not begun."""
    if len(items) <= 1:
        return [function(item) for item in items]
    executor = ThreadPoolExecutor(max_workers=min(_THREADS, len(items)), thread_name_prefix="csi-host-list")
    try:
        # Each in a context of its own: log lines name the call that they belong to.
        futures = [executor.submit(copy_context().run, function, item) for item in items]
        return [future.result() for future in futures]
    finally:
        executor.shutdown(cancel_futures=True)
