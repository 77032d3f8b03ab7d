"""Calls of librbd that work on an image by name or id: bounded, translated, and durable steps where they write."""

from collections.abc import Callable
from typing import TypeVar

from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.failures import translated

T = TypeVar("T")


def call(pool: Pool, name: str, action: str, function: Callable[[], T]) -> T:
    """Return what ``function`` reads of the image, waiting for as long as one call of librbd may take."""
    spec = pool.spec(name)
    with translated(f"{action} {spec}"):
        return pool.image_threads.call(f"{action} {spec}", function, timeout=pool.call_seconds, target=spec)


def write(pool: Pool, name: str, action: str, function: Callable[[], T]) -> T:
    """Do the same with a ``function`` that writes."""
    with pool.writes.step(f"{action} {pool.spec(name)}"):
        return call(pool, name, action, function)
