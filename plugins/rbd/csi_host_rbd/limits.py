"""How long chains of clones may get, and how many snapshots an image may have."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How deep chains may get and how many snapshots an image may have, as ceph-csi's flags of these names."""

    hard_depth: int = 8
    soft_depth: int = 4
    max_snapshots: int = 450
    min_snapshots: int = 250

    def __post_init__(self) -> None:
        if self.soft_depth > self.hard_depth:
            raise ValueError(
                f"rbdsoftmaxclonedepth: expected at most rbdhardmaxclonedepth ({self.hard_depth}), got "
                f"{self.soft_depth}"
            )
        if self.min_snapshots > self.max_snapshots:
            raise ValueError(
                f"minsnapshotsonimage: expected at most maxsnapshotsonimage ({self.max_snapshots}), got "
                f"{self.min_snapshots}"
            )
