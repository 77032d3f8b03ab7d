"""What was found, and how it is mended."""

from collections.abc import Callable
from dataclasses import dataclass, field

from csi_host.locks import VolumeLocks
from csi_host_rbd.fsck.classes import FindingClass, Mending


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of mending: ``command`` does by hand what ``do`` does, but for the conditions that ``do`` checks."""

    command: str
    do: Callable[[], None] = field(repr=False, compare=False)


@dataclass(frozen=True, kw_only=True)
class LockKeys:
    """What a controller locks while it works on the same thing: names and handles, of what ``noun`` says."""

    keys: tuple[str, ...] = ()
    noun: str = VolumeLocks.noun


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong.

    ``since`` is when it can have come about at the earliest, in seconds since 1970, 0 when nothing says so: what is
    younger than the minimal age may be a call at work. ``locks`` are what such a call holds. ``removes_data`` overrules
    the class.
    """

    kind: FindingClass
    cause: str
    objects: tuple[str, ...]
    steps: tuple[Step, ...] = ()
    since: float = 0.0
    locks: LockKeys = LockKeys()
    removes_data: bool = False

    @property
    def mending(self) -> Mending:
        """What ``--repair`` does about it."""
        if not self.steps:
            return Mending.BY_HAND
        return Mending.REMOVES_DATA if self.removes_data else self.kind.mending

    @property
    def identity(self) -> tuple[str, tuple[str, ...]]:
        """What makes it the same finding when it is looked at again."""
        return self.kind.name, self.objects
