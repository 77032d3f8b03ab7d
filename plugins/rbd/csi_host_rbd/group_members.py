"""The volumes of a group snapshot: held for as long as it is made, and fit for it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from csi_host.errors import InvalidArgument
from csi_host.locks import Operation, OperationLocks, VolumeLocks
from csi_host_rbd.ceph import groups
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.create import ImageOptions
from csi_host_rbd.ceph.failures import ImageInGroup
from csi_host_rbd.contents import Contents, OfVolume
from csi_host_rbd.errors import VolumesApart
from csi_host_rbd.features import Feature
from csi_host_rbd.places import Place, Places, lock_key
from csi_host_rbd.reservations import VOLUMES, Reservation


@dataclass(frozen=True, kw_only=True)
class Member:
    """A volume of the group; ``field`` is where the request names it."""

    volume_id: str
    field: str
    place: Place
    source: Reservation


class PartOfGroup:
    """A volume as it was when the snapshot of its group was taken; ``volume`` is what it is now."""

    def __init__(self, volume: OfVolume, snapshot_id: int) -> None:
        self.place = volume.place
        self.source = volume.source
        self.key_source = volume.key_source
        self._size_bytes = volume.size_bytes
        self._snapshot_id = snapshot_id

    def check_room(self) -> None:
        """There was room, as the snapshot is there."""

    def make(self, pool: Pool, name: str, size_bytes: int, options: ImageOptions) -> int:  # noqa: ARG002 (as the protocol has it)
        """Clone it."""
        groups.clone_part(pool, self.source.image_name, self._snapshot_id, name, options)
        return self._size_bytes

    def withdraw(self, name: str) -> None:
        """There is nothing to take back: the snapshot goes with those of the others."""


class Members:
    """Finds the volumes that a request names, all or none of them."""

    def __init__(
        self, *, places: Places, contents: Contents, volume_locks: VolumeLocks, operation_locks: OperationLocks
    ) -> None:
        self._places = places
        self._contents = contents
        self._locks = volume_locks
        self._operations = operation_locks

    @contextmanager
    def held(self, volume_ids: Sequence[str], secrets: Mapping[str, str]) -> Iterator[list[Member]]:
        """Yield the volumes, kept from being deleted, from growing, and from being in another group meanwhile.

        Raises VolumeNotFound, InvalidArgument for one that is named twice, VolumesApart for several pools.
        """
        keys = [lock_key(volume_id) for volume_id in volume_ids]
        _check_distinct(keys)
        with self._locks.hold(*keys), ExitStack() as stack:
            members = []
            for index, key in enumerate(keys):
                field = f"source_volume_ids[{index}]"
                stack.enter_context(self._operations.hold(Operation.CREATE, key))
                place, source = stack.enter_context(
                    self._places.volume(volume_ids[index], secrets, field=field, operation=Operation.CREATE)
                )
                stack.enter_context(self._places.hold_name(place.pool, VOLUMES, key))
                members.append(Member(volume_id=key, field=field, place=place, source=source))
            _check_together(members)
            yield members

    def check(self, member: Member, secrets: Mapping[str, str]) -> None:
        """Raise VolumesApart, ImageInGroup or TooManySnapshots for a volume that cannot be in the group."""
        with self._opened(member, secrets) as volume:
            if not volume.features & Feature.EXCLUSIVE_LOCK:
                raise VolumesApart(
                    f"{member.field}: the image of {member.volume_id} lacks the feature exclusive-lock, without which "
                    "nothing keeps it from being written while the others' snapshots are taken"
                )
            _check_group(member.source.pool, member.source.image_name, volume.group(), member.field)
            volume.check_room()
            if volume.key_source is not None:
                volume.key_source.keys.check()

    @contextmanager
    def part(self, member: Member, snapshot_id: int, secrets: Mapping[str, str]) -> Iterator[PartOfGroup]:
        """Yield a volume's part of the snapshot of its group."""
        with self._opened(member, secrets) as volume:
            yield PartOfGroup(volume, snapshot_id)

    @contextmanager
    def _opened(self, member: Member, secrets: Mapping[str, str]) -> Iterator[OfVolume]:
        with self._contents.at(member.place, member.source, member.volume_id, secrets, field=member.field) as volume:
            yield volume


def _check_distinct(keys: Sequence[str]) -> None:
    seen: dict[str, int] = {}
    for index, key in enumerate(keys):
        if key in seen:
            raise InvalidArgument(f"source_volume_ids[{index}]: {key} is source_volume_ids[{seen[key]}] already")
        seen[key] = index


def _check_together(members: Sequence[Member]) -> None:
    first = members[0]
    images: dict[str, Member] = {}
    for member in members:
        if member.place.cluster.config.monitors != first.place.cluster.config.monitors:
            raise VolumesApart(f"{member.field}: {member.volume_id} is in another cluster than {first.volume_id}")
        ours, theirs = member.source.pool, first.source.pool
        if (ours.pool_id, ours.namespace) != (theirs.pool_id, theirs.namespace):
            raise VolumesApart(
                f"{member.field}: {member.volume_id} is in {ours.spec('').rstrip('/')}, and {first.volume_id} in "
                f"{theirs.spec('').rstrip('/')}: only volumes of one pool and RADOS namespace have a snapshot together"
            )
        same = images.setdefault(member.source.image_name, member)
        if same is not member:
            raise InvalidArgument(f"{member.field}: {member.volume_id} is the same volume as {same.field}")


def _check_group(pool: Pool, image: str, group: str, field: str) -> None:
    """Raise ImageInGroup for an image that is in somebody's group; free it from one that was left behind.

    Whoever makes a group snapshot holds its volumes: nobody is at work on one that is held here.
    """
    if groups.is_temporary(group):
        groups.remove_group(pool, group)
    elif group:
        raise ImageInGroup(f"{field}: image {pool.spec(image)} is in the group {group!r} already")
