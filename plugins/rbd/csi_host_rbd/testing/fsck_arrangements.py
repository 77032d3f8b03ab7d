"""Every class of finding, made with Ceph's own tools; each function returns what the finding is about."""

import struct
import time
import uuid as uuids
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from csi_host_rbd.ceph.bindings import rados, rbd
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.encoding import packed
from csi_host_rbd.testing import ceph_csi
from csi_host_rbd.testing.pools import PoolView

DIRECTORY = "csi.volumes.default"


@dataclass(frozen=True, kw_only=True)
class Ground:
    """Where something is arranged: a pool by Ceph's tools, and by the bindings where the tools cannot do it.

    ``tag`` is at the end of all names that a CO would give.
    """

    pool: PoolView
    store: Pool
    tag: str = ""

    @property
    def ioctx(self) -> Any:
        """The bindings' handle of the place."""
        return self.store.ioctx

    def id_of(self, image: str) -> str:
        """Return an image's id."""
        image_id: str = self.pool.image(image)["id"]
        return image_id

    def create(self, image: str) -> None:
        """Make a small image."""
        rbd.RBD().create(self.ioctx, image, 4 * 1024**2, old_format=False, features=1)

    def clone(self, source: str, snapshot: str, image: str) -> None:
        """Make an image of a snapshot."""
        place = "/".join(part for part in (self.pool.name, self.pool.namespace) if part)
        self.pool.cluster.rbd(
            "clone", "--rbd-default-clone-format", "2", f"{place}/{source}@{snapshot}", f"{place}/{image}"
        )

    def take_snapshot(self, image: str, snapshot: str) -> None:
        """Take a snapshot."""
        with rbd.Image(self.ioctx, image) as one:
            one.create_snap(snapshot)

    def remove_snapshot(self, image: str, snapshot: str) -> None:
        """Remove a snapshot."""
        with rbd.Image(self.ioctx, image) as one:
            one.remove_snap(snapshot)

    def drop_keys(self, name: str, *keys: str) -> None:
        """Remove keys of an object."""
        with rados.WriteOpCtx() as operation:
            self.ioctx.remove_omap_keys(operation, keys)
            self.ioctx.operate_write_op(operation, name, int(time.time()))


def new_uuid() -> str:
    return str(uuids.uuid4())


def _cut_off(ground: Ground, *, steps: int) -> ceph_csi.CephCsiVolume:
    return ceph_csi.make_volume(ground.pool, f"pvc-x{ground.tag}", steps=steps)


def stale_name(ground: Ground) -> str:
    ground.pool.set_key(DIRECTORY, f"csi.volume.pvc-x{ground.tag}", new_uuid())
    return f"csi.volume.pvc-x{ground.tag}"


def stale_name_of_a_snapshot(ground: Ground) -> str:
    ground.pool.set_key("csi.snaps.default", f"csi.snap.snap-x{ground.tag}", new_uuid())
    return f"csi.snap.snap-x{ground.tag}"


def stale_name_with_an_empty_object(ground: Ground) -> str:
    return f"csi.volume.{_cut_off(ground, steps=2).name}"


def stale_name_into_a_pool_that_is_gone(ground: Ground) -> str:
    ground.pool.set_key(DIRECTORY, f"csi.volume.pvc-x{ground.tag}", f"{0xFFFFF:016x}/{new_uuid()}")
    return f"csi.volume.pvc-x{ground.tag}"


def lost_entry(ground: Ground) -> str:
    volume = ceph_csi.make_volume(ground.pool, f"pvc-x{ground.tag}")
    ground.pool.remove_object(f"csi.volume.{volume.uuid}")
    return f"csi.volume.pvc-x{ground.tag}"


def lost_keys(ground: Ground) -> str:
    volume = ceph_csi.make_volume(ground.pool, f"pvc-x{ground.tag}")
    ground.pool.remove_keys(f"csi.volume.{volume.uuid}")
    return f"csi.volume.pvc-x{ground.tag}"


def lost_entry_of_a_snapshot(ground: Ground) -> str:
    source = ceph_csi.make_volume(ground.pool, f"pvc-x{ground.tag}", size="4M")
    snapshot = ceph_csi.make_snapshot(source, f"snap-x{ground.tag}")
    ground.pool.remove_object(f"csi.snap.{snapshot.uuid}")
    return f"csi.snap.snap-x{ground.tag}"


def names_mismatch(ground: Ground) -> str:
    volume = ceph_csi.make_volume(ground.pool, f"pvc-x{ground.tag}")
    ground.pool.set_key(f"csi.volume.{volume.uuid}", "csi.volname", f"pvc-y{ground.tag}")
    return f"csi.volume.pvc-x{ground.tag}"


def name_unreadable(ground: Ground) -> str:
    ground.pool.set_key(DIRECTORY, f"csi.volume.pvc-x{ground.tag}", "what is this")
    return f"csi.volume.pvc-x{ground.tag}"


def empty_name(ground: Ground) -> str:
    ground.pool.set_key(DIRECTORY, "csi.volume.", new_uuid())
    return "csi.volume."


def entry_without_name(ground: Ground) -> str:
    return f"csi.volume.{_cut_off(ground, steps=1).uuid}"


def snapshot_entry_without_name(ground: Ground) -> str:
    name = f"csi.snap.{new_uuid()}"
    ground.pool.set_keys(
        name, {"csi.snapname": f"snap-x{ground.tag}", "csi.imagename": name, "csi.source": "csi-vol-x"}
    )
    return name


def entry_whose_name_is_anothers(ground: Ground) -> str:
    volume = ceph_csi.make_volume(ground.pool, f"pvc-x{ground.tag}")
    name = f"csi.volume.{new_uuid()}"
    ground.pool.set_keys(name, {"csi.volname": volume.name})
    return name


def volume_without_name(ground: Ground) -> str:
    volume = ceph_csi.make_volume(ground.pool, f"pvc-x{ground.tag}")
    ground.drop_keys(DIRECTORY, f"csi.volume.pvc-x{ground.tag}")
    return f"csi.volume.{volume.uuid}"


def duplicate_volume(ground: Ground) -> str:
    first = ceph_csi.make_volume(ground.pool, f"pvc-x{ground.tag}")
    ceph_csi.make_volume(ground.pool, f"pvc-x{ground.tag}")
    return f"csi.volume.{first.uuid}"


def keys_lost(ground: Ground) -> str:
    volume = ceph_csi.make_volume(ground.pool, f"pvc-x{ground.tag}")
    ground.pool.remove_keys(f"csi.volume.{volume.uuid}")
    ground.drop_keys(DIRECTORY, f"csi.volume.pvc-x{ground.tag}")
    return f"csi.volume.{volume.uuid}"


def image_missing(ground: Ground) -> str:
    return ceph_csi.make_volume(ground.pool, f"pvc-x{ground.tag}", steps=3).image


def image_removed_by_hand(ground: Ground) -> str:
    volume = ceph_csi.make_volume(ground.pool, f"pvc-x{ground.tag}", size="4M")
    ground.pool.rbd("rm", "--no-progress", volume.image)
    return volume.image


def image_renamed(ground: Ground) -> str:
    volume = ceph_csi.make_volume(ground.pool, f"pvc-x{ground.tag}")
    ground.pool.rbd("rename", volume.image, "mine")
    return volume.image


def image_id_missing(ground: Ground) -> str:
    return ceph_csi.make_volume(ground.pool, f"pvc-x{ground.tag}", steps=4).image


def image_id_stale(ground: Ground) -> str:
    volume = ceph_csi.make_volume(ground.pool, f"pvc-x{ground.tag}")
    ground.pool.set_key(f"csi.volume.{volume.uuid}", "csi.imageid", "0123456789ab")
    return volume.image


def image_without_entry(ground: Ground) -> str:
    name = f"fast-{new_uuid()}"
    ground.create(name)
    return name


def snapshot_image_without_entry(ground: Ground) -> str:
    name = f"csi-snap-{new_uuid()}"
    ground.create(name)
    ground.take_snapshot(name, name)
    return name


def temp_without_clone(ground: Ground) -> str:
    source = ceph_csi.make_volume(ground.pool, f"pvc-x{ground.tag}", size="4M")
    clone = ceph_csi.make_clone(source, f"pvc-y{ground.tag}", steps=7)
    ground.pool.remove_object(f"csi.volume.{clone.uuid}")
    ground.drop_keys(DIRECTORY, f"csi.volume.pvc-y{ground.tag}")
    return f"{clone.image}-temp"


def trash_without_task(ground: Ground) -> str:
    name = f"csi-vol-{new_uuid()}"
    ground.create(name)
    rbd.RBD().trash_move(ground.ioctx, name, 0)
    return name


def trash_move_unfinished(ground: Ground) -> str:
    name = f"csi-vol-{new_uuid()}"
    ground.create(name)
    ground.pool.cut_off_trash_move(name)
    return name


def trash_move_unfinished_with_a_task(ground: Ground) -> str:
    name = f"csi-vol-{new_uuid()}"
    ground.create(name)
    place = "/".join(part for part in (ground.pool.name, ground.pool.namespace, ground.pool.image(name)["id"]) if part)
    ground.pool.cut_off_trash_move(name)
    ground.pool.cluster.ceph("rbd", "task", "add", "trash", "remove", place)
    return name


def deletion_unfinished(ground: Ground) -> str:
    volume = ceph_csi.make_volume(ground.pool, f"pvc-x{ground.tag}", size="4M")
    ceph_csi.trash_image(volume)
    return volume.image


def deletion_unfinished_without_the_id(ground: Ground) -> str:
    volume = ceph_csi.make_volume(ground.pool, f"pvc-x{ground.tag}", size="4M", steps=4)
    ceph_csi.trash_image(volume)
    return volume.image


def snapshot_left_behind(ground: Ground) -> str:
    source = ceph_csi.make_volume(ground.pool, f"pvc-x{ground.tag}", size="4M")
    name = f"csi-snap-{new_uuid()}"
    ground.take_snapshot(source.image, name)
    return f"{source.image}@{name}"


def snapshot_left_behind_by_a_whole_snapshot(ground: Ground) -> str:
    source = ceph_csi.make_volume(ground.pool, f"pvc-x{ground.tag}", size="4M")
    snapshot = ceph_csi.make_snapshot(source, f"snap-x{ground.tag}")
    ground.take_snapshot(source.image, snapshot.image)
    return f"{source.image}@{snapshot.image}"


def snapshot_left_behind_by_a_clone_of_ours(ground: Ground) -> str:
    """Our own clone, cut off before the snapshot on its source went: the last step."""
    source = ceph_csi.make_volume(ground.pool, f"pvc-x{ground.tag}", size="4M")
    clone = ceph_csi.make_volume(ground.pool, f"pvc-y{ground.tag}", steps=3)
    ground.take_snapshot(source.image, clone.image)
    ground.clone(source.image, clone.image, clone.image)
    ground.pool.set_key(f"csi.volume.{clone.uuid}", "csi.imageid", ground.id_of(clone.image))
    return f"{source.image}@{clone.image}"


def snapshot_left_behind_on_the_image_between(ground: Ground) -> str:
    source = ceph_csi.make_volume(ground.pool, f"pvc-x{ground.tag}", size="4M")
    clone = ceph_csi.make_clone(source, f"pvc-y{ground.tag}", steps=8)
    ground.pool.set_key(f"csi.volume.{clone.uuid}", "csi.imageid", ground.id_of(clone.image))
    return f"{clone.image}-temp@{clone.image}"


def snapshot_unfinished(ground: Ground) -> str:
    source = ceph_csi.make_volume(ground.pool, f"pvc-x{ground.tag}", size="4M")
    return ceph_csi.make_snapshot(source, f"snap-x{ground.tag}", steps=4).image


def snapshot_missing(ground: Ground) -> str:
    source = ceph_csi.make_volume(ground.pool, f"pvc-x{ground.tag}", size="4M")
    snapshot = ceph_csi.make_snapshot(source, f"snap-x{ground.tag}")
    ground.remove_snapshot(snapshot.image, snapshot.image)
    return snapshot.image


def child_not_registered(ground: Ground) -> str:
    source = ceph_csi.make_volume(ground.pool, f"pvc-x{ground.tag}", size="4M")
    snapshot = ceph_csi.make_snapshot(source, f"snap-x{ground.tag}")
    restored = ceph_csi.make_restore(snapshot, f"pvc-y{ground.tag}")
    header = f"rbd_header.{ground.id_of(snapshot.image)}"
    key = next(one for one in ground.pool.key_names(header) if one.startswith("snap_children_"))
    ground.drop_keys(header, key)
    return restored.image


def parent_missing(ground: Ground) -> str:
    source = ceph_csi.make_volume(ground.pool, f"pvc-x{ground.tag}", size="4M")
    snapshot = ceph_csi.make_snapshot(source, f"snap-x{ground.tag}")
    restored = ceph_csi.make_restore(snapshot, f"pvc-y{ground.tag}")
    name = f"rbd_header.{ground.id_of(restored.image)}"
    parent = _parent_of_another_id(ground, name)
    with rados.WriteOpCtx() as operation:
        ground.ioctx.set_omap(operation, ("parent",), (parent,))
        ground.ioctx.operate_write_op(operation, name, int(time.time()))
    return restored.image


def _parent_of_another_id(ground: Ground, header: str) -> bytes:
    with rados.ReadOpCtx() as operation:
        values, _ = ground.ioctx.get_omap_vals_by_keys(operation, ("parent",))
        ground.ioctx.operate_read_op(operation, header)
        value: bytes = next(bytes(one) for _, one in values)
    # The image's id, as long as before, is another one.
    length = struct.unpack_from("<I", value, 14)[0]
    namespace_end = 18 + length
    id_length = struct.unpack_from("<I", value, namespace_end)[0]
    start = namespace_end + 4
    return bytes(value[:start] + b"f" * id_length + value[start + id_length :])


def clone_unfinished(ground: Ground) -> str:
    source = ceph_csi.make_volume(ground.pool, f"pvc-x{ground.tag}", size="4M")
    clone = ceph_csi.make_volume(ground.pool, f"pvc-y{ground.tag}", steps=4, size="4M")
    ground.take_snapshot(source.image, clone.image)
    return clone.image


def image_remnants(ground: Ground) -> str:
    volume = ceph_csi.make_volume(ground.pool, f"pvc-x{ground.tag}", size="4M")
    ground.pool.remove_object(f"rbd_header.{ground.id_of(volume.image)}")
    ground.pool.remove_object(f"csi.volume.{volume.uuid}")
    ground.drop_keys(DIRECTORY, f"csi.volume.pvc-x{ground.tag}")
    return volume.image


def id_object_alone(ground: Ground) -> str:
    name = f"csi-vol-{new_uuid()}"
    ground.pool.create_object(f"rbd_id.{name}")
    return name


def directory_entry_alone(ground: Ground) -> str:
    name = f"csi-vol-{new_uuid()}"
    ground.ioctx.execute("rbd_directory", "rbd", "dir_add_image", packed(name) + packed("0123456789ab"))
    return name


def image_not_listed(ground: Ground) -> str:
    volume = ceph_csi.make_volume(ground.pool, f"pvc-x{ground.tag}", size="4M")
    image_id = ground.id_of(volume.image)
    ground.drop_keys("rbd_directory", f"name_{volume.image}", f"id_{image_id}")
    return volume.image


def id_object_missing(ground: Ground) -> str:
    volume = ceph_csi.make_volume(ground.pool, f"pvc-x{ground.tag}", size="4M")
    ground.pool.remove_object(f"rbd_id.{volume.image}")
    return volume.image


def image_names_mismatch(ground: Ground) -> str:
    one, other = (
        ceph_csi.make_volume(ground.pool, name, size="4M") for name in (f"pvc-x{ground.tag}", f"pvc-y{ground.tag}")
    )
    ground.ioctx.write_full(f"rbd_id.{one.image}", packed(ground.id_of(other.image)))
    return one.image


def orphan_header(ground: Ground) -> str:
    ground.create("x")
    image_id = ground.id_of("x")
    ground.drop_keys("rbd_directory", "name_x", f"id_{image_id}")
    ground.pool.remove_object("rbd_id.x")
    return f"rbd_header.{image_id}"


def orphan_object_map(ground: Ground) -> str:
    ground.pool.create_object("rbd_object_map.0123456789ab.000000000000000a")
    return "rbd_object_map.0123456789ab.000000000000000a"


def group_missing(ground: Ground) -> str:
    uuid = new_uuid()
    ground.pool.set_key("csi.groups.default", f"csi.volume.group.g{ground.tag}", uuid)
    ground.pool.set_keys(
        f"csi.volume.group.{uuid}", {"csi.volname": f"g{ground.tag}", "csi.groupname": f"csi-vol-group-{uuid}"}
    )
    return f"csi-vol-group-{uuid}"


def group_without_entry(ground: Ground) -> str:
    name = f"csi-vol-group-{new_uuid()}"
    rbd.RBD().group_create(ground.ioctx, name)
    return name


def group_member_missing(ground: Ground) -> str:
    uuid, cluster_id = new_uuid(), "dev"
    snapshot = f"0001-0003-{cluster_id}-{ground.store.pool_id:016x}-{new_uuid()}"
    volume = f"0001-0003-{cluster_id}-{ground.store.pool_id:016x}-{new_uuid()}"
    ground.pool.set_key("csi.groups.default", f"csi.volume.group.g{ground.tag}", uuid)
    ground.pool.set_keys(f"csi.volume.group.{uuid}", {"csi.volname": f"g{ground.tag}", volume: snapshot})
    return snapshot


def abandoned_lock(ground: Ground) -> str:
    ground.ioctx.lock_exclusive("csi.lock.pvc-x", "csi.holder", "cookie", "", 60)
    ground.ioctx.unlock("csi.lock.pvc-x", "csi.holder", "cookie")
    return "csi.lock.pvc-x"


def lock_of_a_dead_controller(ground: Ground) -> str:
    """What the tool takes outlives it."""
    place = ("--pool", ground.pool.name, "--namespace", ground.pool.namespace)
    ground.pool.cluster.rados(*place, "lock", "get", "csi.lock.pvc-x", "csi.holder", "--lock-cookie", "theirs")
    return "csi.lock.pvc-x"


Arrangement = Callable[[Ground], str]
# What ``--repair`` mends, with ``--remove-data`` where the class says so.
MENDED: Mapping[str, tuple[Arrangement, ...]] = {
    "stale-name": (
        stale_name,
        stale_name_of_a_snapshot,
        stale_name_with_an_empty_object,
        stale_name_into_a_pool_that_is_gone,
    ),
    "lost-entry": (lost_entry, lost_keys),
    "empty-name": (empty_name,),
    "entry-without-name": (entry_without_name, snapshot_entry_without_name, entry_whose_name_is_anothers),
    "volume-without-name": (volume_without_name,),
    "image-missing": (image_missing, image_removed_by_hand),
    "image-id-stale": (image_id_stale,),
    "image-without-entry": (image_without_entry, snapshot_image_without_entry),
    "temp-without-clone": (temp_without_clone,),
    "trash-without-task": (trash_without_task,),
    "trash-move-unfinished": (trash_move_unfinished, trash_move_unfinished_with_a_task),
    "deletion-unfinished": (deletion_unfinished, deletion_unfinished_without_the_id),
    "snapshot-left-behind": (
        snapshot_left_behind,
        snapshot_left_behind_by_a_whole_snapshot,
        snapshot_left_behind_by_a_clone_of_ours,
        snapshot_left_behind_on_the_image_between,
    ),
    "snapshot-unfinished": (snapshot_unfinished,),
    "snapshot-missing": (snapshot_missing,),
    "child-not-registered": (child_not_registered,),
    "clone-unfinished": (clone_unfinished,),
    "image-remnants": (image_remnants, id_object_alone, directory_entry_alone),
    "image-not-listed": (image_not_listed,),
    "id-object-missing": (id_object_missing,),
    "orphan-header": (orphan_header,),
    "orphan-object-map": (orphan_object_map,),
    "group-missing": (group_missing,),
    "group-without-entry": (group_without_entry,),
    "abandoned-lock": (abandoned_lock, lock_of_a_dead_controller),
}
# What is left to a person.
TOLD: Mapping[str, tuple[Arrangement, ...]] = {
    "lost-entry": (lost_entry_of_a_snapshot,),
    "names-mismatch": (names_mismatch,),
    "name-unreadable": (name_unreadable,),
    "duplicate-volume": (duplicate_volume,),
    "keys-lost": (keys_lost,),
    "image-renamed": (image_renamed,),
    "image-id-missing": (image_id_missing,),
    "parent-missing": (parent_missing,),
    "image-names-mismatch": (image_names_mismatch,),
    "group-member-missing": (group_member_missing,),
}
