"""Sizes: what a CapacityRange asks for, in whole units a backend can make."""

from dataclasses import dataclass

from csi_host.errors import InvalidArgument, OutOfRange

MIB = 1024**2
GIB = 1024**3


@dataclass(frozen=True, kw_only=True)
class CapacityRange:
    """The bytes a volume must have at least and may have at most; 0 stands for "not said" as in the CSI spec."""

    required_bytes: int = 0
    limit_bytes: int = 0

    def __post_init__(self) -> None:
        if self.required_bytes < 0:
            raise InvalidArgument(f"capacity_range.required_bytes: expected 0 or more, got {self.required_bytes}")
        if self.limit_bytes < 0:
            raise InvalidArgument(f"capacity_range.limit_bytes: expected 0 or more, got {self.limit_bytes}")
        if 0 < self.limit_bytes < self.required_bytes:
            raise InvalidArgument(
                f"capacity_range.limit_bytes: expected at least required_bytes ({self.required_bytes}), "
                f"got {self.limit_bytes}"
            )

    def check_limit(self, size_bytes: int) -> None:
        """Raise OutOfRange when ``size_bytes`` is more than the caller accepts."""
        if self.limit_bytes and size_bytes > self.limit_bytes:
            raise OutOfRange(
                f"capacity_range.limit_bytes: the volume would have {size_bytes} bytes, the limit is {self.limit_bytes}"
            )


def round_up(size_bytes: int, unit_bytes: int) -> int:
    """Return the smallest multiple of ``unit_bytes`` that is not below ``size_bytes``."""
    return -(-size_bytes // unit_bytes) * unit_bytes
