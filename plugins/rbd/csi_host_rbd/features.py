"""Image features: their names in a StorageClass and their bits in librbd."""

from enum import IntFlag

from csi_host.errors import InvalidArgument


class Feature(IntFlag):
    """librbd's feature bits; the numbers are part of the on-disk format."""

    LAYERING = 1 << 0
    STRIPINGV2 = 1 << 1
    EXCLUSIVE_LOCK = 1 << 2
    OBJECT_MAP = 1 << 3
    FAST_DIFF = 1 << 4
    DEEP_FLATTEN = 1 << 5
    JOURNALING = 1 << 6
    DATA_POOL = 1 << 7
    OPERATIONS = 1 << 8
    MIGRATING = 1 << 9
    NON_PRIMARY = 1 << 10


_SELECTABLE = {
    "layering": Feature.LAYERING,
    "exclusive-lock": Feature.EXCLUSIVE_LOCK,
    "object-map": Feature.OBJECT_MAP,
    "fast-diff": Feature.FAST_DIFF,
    "deep-flatten": Feature.DEEP_FLATTEN,
    "journaling": Feature.JOURNALING,
}
_NEEDS = {"object-map": "exclusive-lock", "fast-diff": "object-map", "journaling": "exclusive-lock"}
# The kernel's client cannot write an image's journal; the clients built on librbd can.
_JOURNALING_MOUNTERS = ("rbd-nbd", "qemu")


def parse_features(text: str, mounter: str) -> int:
    """Return the bit mask of a comma list of feature names; raises InvalidArgument naming the one that cannot be."""
    names = text.split(",")
    for name in names:
        if name not in _SELECTABLE:
            raise InvalidArgument(
                f"parameters[imageFeatures]: expected a comma list of {', '.join(_SELECTABLE)}, got {name!r}"
            )
        if name in _NEEDS and _NEEDS[name] not in names:
            raise InvalidArgument(f"parameters[imageFeatures]: {name} needs {_NEEDS[name]}")
    if "journaling" in names and mounter not in _JOURNALING_MOUNTERS:
        raise InvalidArgument(
            "parameters[imageFeatures]: journaling needs parameters[mounter] to be one of "
            f"{', '.join(_JOURNALING_MOUNTERS)}, got {mounter or 'none'!r}"
        )
    mask = 0
    for name in names:
        mask |= _SELECTABLE[name]
    return mask


def feature_names(mask: int) -> list[str]:
    """Return the names of a mask's features as `rbd info` has them; the number of a bit that has none."""
    return [_name(1 << bit) for bit in range(mask.bit_length()) if mask & 1 << bit]


def _name(bit: int) -> str:
    name = Feature(bit).name if bit in Feature.__members__.values() else None
    return (name or f"feature {bit:#x}").lower().replace("_", "-").replace("stripingv2", "striping")
