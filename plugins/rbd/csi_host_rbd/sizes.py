"""How big an image is made: ceph-csi's rounding, with the caller's limit honoured."""

from csi_host.capacity import GIB, MIB, CapacityRange, round_up

DEFAULT_SIZE_BYTES = GIB
# librbd and the kernel take sizes up to 2^63 - 1 bytes; whole GiB below that.
MAX_SIZE_BYTES = (2**63 - 1) // GIB * GIB


def image_size(capacity: CapacityRange | None) -> int:
    """Return the bytes an image is given: whole MiB below 1 GiB, whole GiB from there, 1 GiB when nothing is said.

    Where the limit forbids rounding up to whole GiB, whole MiB are tried before OutOfRange is raised.
    """
    if capacity is None:
        return DEFAULT_SIZE_BYTES
    wanted = capacity.required_bytes or _default_within(capacity)
    coarse = round_up(wanted, MIB if wanted < GIB else GIB)
    fits = not capacity.limit_bytes or coarse <= capacity.limit_bytes
    size = coarse if fits else round_up(wanted, MIB)
    capacity.check_limit(size)
    CapacityRange(limit_bytes=MAX_SIZE_BYTES).check_limit(size)
    return size


def _default_within(capacity: CapacityRange) -> int:
    if 0 < capacity.limit_bytes < DEFAULT_SIZE_BYTES:
        return max(MIB, capacity.limit_bytes // MIB * MIB)
    return DEFAULT_SIZE_BYTES
