from collections.abc import Iterable, Iterator

from csi_host.errors import FailedPrecondition, InvalidArgument
from csi_host_rbd.attach.attacher import Attacher
from csi_host_rbd.options import MOUNTERS


class MounterNotServed(FailedPrecondition):
    """The mounter is one of ceph-csi's, and this version has no attacher for it."""


class Attachers:
    """The attachers this node has, by the mounter name of a StorageClass.

    ``default`` is the mounter of volumes whose context names none.
    """

    def __init__(self, attachers: Iterable[Attacher], *, default: str) -> None:
        self._attachers = {attacher.name: attacher for attacher in attachers}
        self._default = default

    def __iter__(self) -> Iterator[Attacher]:
        return iter(self._attachers.values())

    def named(self, mounter: str) -> Attacher:
        """Return the attacher of ``mounter`` ("" for the default one).

        Raises InvalidArgument for a name that is no mounter, MounterNotServed for one that has no attacher here.
        """
        name = mounter or self._default
        if name in self._attachers:
            return self._attachers[name]
        if name not in MOUNTERS:
            raise InvalidArgument(f"volume_context[mounter]: expected one of {', '.join(MOUNTERS)}, got {name!r}")
        served = " or ".join(f"'mounter: {served}'" for served in sorted(self._attachers)) or "another mounter"
        source = "" if mounter else " (the default, as volume_context[mounter] is not set)"
        raise MounterNotServed(
            f"mounter {name}{source} is not served by this version; "
            f"use {served} in the StorageClass, or set the default with --mounter"
        )
