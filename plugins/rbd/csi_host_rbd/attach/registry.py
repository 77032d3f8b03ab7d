from collections.abc import Iterable, Iterator

from csi_host.errors import FailedPrecondition, InvalidArgument
from csi_host_rbd.attach.attacher import Attacher, ImageSpec


class NoMounterServes(FailedPrecondition):
    """None of several mounters can attach the image on this node; the message says why each cannot."""


class Attachers:
    """The attachers this node has, by the mounter name of a StorageClass.

    ``default`` is the mounter of volumes whose context names none.
    """

    def __init__(self, attachers: Iterable[Attacher], *, default: str) -> None:
        self._attachers = {attacher.name: attacher for attacher in attachers}
        self._default = default

    def __iter__(self) -> Iterator[Attacher]:
        return iter(self._attachers.values())

    def choose(self, mounter: str, features: int, *, try_others: bool = False) -> Attacher:
        """Return the attacher for an image with these feature bits: the one of ``mounter`` ("" for the default one).

        With ``try_others`` the next one that this machine has everything for, in the order they were given. Raises
        what the first one says against it, with what the others say; and as ``named`` does.
        """
        first = self.named(mounter)
        candidates = [first, *(other for other in self if other is not first)] if try_others else [first]
        refusals: list[FailedPrecondition] = []
        for attacher in candidates:
            try:
                attacher.check()
                attacher.check_features(features)
            except FailedPrecondition as refusal:
                refusals.append(refusal)
            else:
                return attacher
        if len(refusals) == 1:
            raise refusals[0]
        reasons = "; ".join(f"{one.name}: {why}" for one, why in zip(candidates, refusals, strict=True))
        raise NoMounterServes(f"volume_context[tryOtherMounters]: no mounter can attach this image here: {reasons}")

    def named(self, mounter: str) -> Attacher:
        """Return the attacher of ``mounter`` ("" for the default one); raises InvalidArgument when there is none."""
        name = mounter or self._default
        if name not in self._attachers:
            raise InvalidArgument(
                f"volume_context[mounter]: expected one of {', '.join(self._attachers)}, got {name!r}"
            )
        return self._attachers[name]

    def serving(self, spec: ImageSpec) -> Attacher | None:
        """Return the attacher through which the image is a device on this node already, None when it is none."""
        return next((attacher for attacher in self if attacher.find(spec) is not None), None)
