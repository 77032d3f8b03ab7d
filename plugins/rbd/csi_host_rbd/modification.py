"""What can be changed of a volume that exists: the mutable parameters of a VolumeAttributesClass.

======================================================  ==============================================================
parameter                                               what it does
======================================================  ==============================================================
maxIops, maxReadIops, maxWriteIops                      operations a second: of both kinds together, reads, writes
maxBps, maxReadBps, maxWriteBps                         bytes a second, likewise; Ki, Mi and Gi are understood
burstIops, burstReadIops, burstBps and so on            what may pass in a burst, not below the maximum of the same name
burstIopsSeconds, burstReadIopsSeconds and so on        how long a burst may last
metadata/<name>                                         a text kept with the image, under the very same name
======================================================  ==============================================================

An empty value removes what was set before. Everything is checked, together with what the image has already, before
anything is written; writing is repeated without harm, and one that was cut off is finished by the retry.

The limits are librbd's own (``conf_rbd_qos_…`` in the image's metadata), so they hold where librbd does the I/O: with
the mounters qemu and rbd-nbd, and at once, as librbd hears of a change. The kernel's client (mounter rbd) does not know
them. CreateVolume sees the class's mounter and refuses limits for krbd; ControllerModifyVolume is not told how nodes
map the volume, so there they are written, to hold as soon as librbd opens the image.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from csi_host.errors import InvalidArgument
from csi_host_rbd.image_metadata import MetadataChanges

METADATA_PREFIX = "metadata/"
_QUANTITIES = {"Iops": "iops", "Bps": "bps"}
_KINDS = {"": "", "Read": "read_", "Write": "write_"}
_UNITS = {"": 1, "Ki": 1024, "Mi": 1024**2, "Gi": 1024**3}
_NUMBER = re.compile(r"([0-9]{1,15})(|Ki|Mi|Gi)")
# librbd counts in 64 bits and multiplies by the seconds of a burst.
_MAX_LIMIT = 10**15
_MAX_SECONDS = 86400
_MAX_NAME_BYTES, _MAX_VALUE_BYTES = 128, 2048
_KRBD = "rbd"


@dataclass(frozen=True, kw_only=True)
class Limit:
    """One limit of librbd: by its metadata key ``conf_rbd_qos_<name>_limit``, with a burst and its seconds."""

    name: str
    parameter: str

    @property
    def keys(self) -> tuple[str, str, str]:
        """The metadata keys of the limit, the burst, and the burst's seconds."""
        stem = f"conf_rbd_qos_{self.name}"
        return f"{stem}_limit", f"{stem}_burst", f"{stem}_burst_seconds"

    @property
    def parameters(self) -> tuple[str, str, str]:
        """The parameters of the same three."""
        return f"max{self.parameter}", f"burst{self.parameter}", f"burst{self.parameter}Seconds"


LIMITS = tuple(
    Limit(name=kind + quantity, parameter=word + unit)
    for unit, quantity in _QUANTITIES.items()
    for word, kind in _KINDS.items()
)
_KEYS = {parameter: key for limit in LIMITS for parameter, key in zip(limit.parameters, limit.keys, strict=True)}

_LIMIT_KEYS = frozenset(_KEYS.values())


@dataclass(frozen=True, kw_only=True)
class Modification:
    """What an image's metadata is to have afterwards: values by key, "" for what is to be removed."""

    values: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_limits(self) -> bool:
        """Whether it limits I/O."""
        return any(value for key, value in self.values.items() if not key.startswith(METADATA_PREFIX))

    def check_mounter(self, mounter: str) -> None:
        """Raise InvalidArgument when limits are asked for where they would not hold."""
        if self.has_limits and mounter == _KRBD:
            raise InvalidArgument(
                "mutable_parameters: limits hold where librbd does the I/O, and the kernel's client does not know "
                "them; set parameters[mounter] to rbd-nbd or qemu, or leave the limits out"
            )

    def changes(self, present: Mapping[str, str]) -> MetadataChanges:
        """Return what has to be written and removed where the image has ``present``; raises InvalidArgument."""
        _check_bursts([one for one in LIMITS if self.values.keys() & set(one.keys)], {**present, **self.values})
        changed = {key: value for key, value in self.values.items() if present.get(key, "") != value}
        return MetadataChanges(
            wanted={key: value for key, value in changed.items() if value},
            unwanted=frozenset(key for key, value in changed.items() if not value),
        )

    def changes_of_new(self, present: Mapping[str, str], *, is_copy: bool) -> MetadataChanges:
        """Return the same for an image that is being made; what a clone has from its source alone goes."""
        inherited = {key: "" for key in present if key in _LIMIT_KEYS or key.startswith(METADATA_PREFIX)}
        return replace(self, values={**(inherited if is_copy else {}), **self.values}).changes(present)


def parse_modification(parameters: Mapping[str, str]) -> Modification:
    """Read mutable parameters; raises InvalidArgument naming the one that is unknown or wrong."""
    values = {}
    for name, text in parameters.items():
        if name.startswith(METADATA_PREFIX):
            _check_metadata(name, text)
            values[name] = text
        elif name in _KEYS:
            values[_KEYS[name]] = _number(name, text) if text else ""
        else:
            known = ", ".join([*_KEYS, f"{METADATA_PREFIX}<name>"])
            raise InvalidArgument(f"mutable_parameters[{name}]: unknown; expected one of {known}")
    return Modification(values=values)


def _number(name: str, text: str) -> str:
    found = _NUMBER.fullmatch(text)
    has_unit = found is not None and found[2]
    if found is None or (has_unit and not name.endswith("Bps")):
        units = ", or one with Ki, Mi or Gi" if name.endswith("Bps") else ""
        raise InvalidArgument(f"mutable_parameters[{name}]: expected a whole number{units}, got {text[:40]!r}")
    number, most = int(found[1]) * _UNITS[found[2]], _MAX_SECONDS if name.endswith("Seconds") else _MAX_LIMIT
    if not 0 < number <= most:
        raise InvalidArgument(
            f"mutable_parameters[{name}]: expected 1 to {most}, or an empty value for none, got {text[:40]!r}"
        )
    return str(number)


def _check_metadata(name: str, text: str) -> None:
    size = len(name.encode())
    if name == METADATA_PREFIX or size > _MAX_NAME_BYTES:
        raise InvalidArgument(
            f"mutable_parameters[{name[:40]}]: expected a name after {METADATA_PREFIX}, and at most {_MAX_NAME_BYTES} "
            "bytes in all"
        )
    if len(text.encode()) > _MAX_VALUE_BYTES:
        raise InvalidArgument(f"mutable_parameters[{name}]: expected at most {_MAX_VALUE_BYTES} bytes")


def _check_bursts(limits: Sequence[Limit], values: Mapping[str, str]) -> None:
    """Refuse what librbd would not take: a burst without its limit or below it."""
    for limit in limits:
        most, burst, seconds = (values.get(key, "") for key in limit.keys)
        maximum, burst_name, seconds_name = limit.parameters
        if burst and (not most or _whole(burst) < _whole(most)):
            raise InvalidArgument(
                f"mutable_parameters[{burst_name}]: expected at least {maximum}, which is {most or 'not set'}, "
                f"got {burst}"
            )
        if seconds and not burst:
            raise InvalidArgument(
                f"mutable_parameters[{seconds_name}]: expected {burst_name} as well, which is not set"
            )


def _whole(text: str) -> int:
    # What another tool wrote counts as nothing where it is no number.
    return int(text) if text.isdecimal() else 0
