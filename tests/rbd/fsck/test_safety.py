"""What keeps mending from breaking what is at work, or what is somebody's."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace

import pytest

from csi_host.errors import Aborted
from csi_host_rbd.ceph.bindings import rbd
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.connections import Connections, Timeouts
from csi_host_rbd.ceph.writes import Writes
from csi_host_rbd.credentials import Credentials
from csi_host_rbd.devcluster import DevCluster
from csi_host_rbd.fsck.findings import LockKeys
from csi_host_rbd.shared_locks import RadosLocks
from csi_host_rbd.testing import ceph_csi, fsck_arrangements
from csi_host_rbd.testing.clusters import own_cluster
from csi_host_rbd.testing.fsck_arrangements import MENDED, Arrangement, Ground, new_uuid
from csi_host_rbd.testing.fsck_kit import Checker
from csi_host_rbd.testing.pools import PoolView

pytestmark = pytest.mark.ceph

HOUR = 3600.0
UNDER_WAY = [
    fsck_arrangements.entry_without_name,
    fsck_arrangements.stale_name_with_an_empty_object,
    fsck_arrangements.image_missing,
    fsck_arrangements.image_id_missing,
    fsck_arrangements.temp_without_clone,
    fsck_arrangements.trash_without_task,
    fsck_arrangements.snapshot_left_behind,
    fsck_arrangements.snapshot_unfinished,
    fsck_arrangements.clone_unfinished,
    fsck_arrangements.child_not_registered,
    fsck_arrangements.id_object_alone,
    fsck_arrangements.orphan_object_map,
    fsck_arrangements.group_missing,
]


@pytest.fixture(scope="module")
def ceph() -> Iterator[DevCluster]:
    """A cluster of these tests' own: they look at all of it, whatever others have left there."""
    with own_cluster() as cluster:
        yield cluster


@pytest.mark.parametrize("arrange", UNDER_WAY)
def test_what_a_call_may_be_at_is_neither_told_nor_touched(
    arrange: Arrangement, ground: Ground, checker: Checker
) -> None:
    arrange(ground)
    before = checker.dump()
    report = checker.run(repairs=True, removes_data=True, min_age=HOUR)
    assert report.outcomes == ()
    assert report.young >= 1
    assert checker.dump() == before


def test_what_is_right_when_it_is_looked_at_again_is_not_told(ground: Ground, checker: Checker) -> None:
    key = fsck_arrangements.stale_name(ground)
    seen: list[float] = []

    def finish(seconds: float) -> None:
        seen.append(seconds)
        ground.drop_keys(fsck_arrangements.DIRECTORY, key)

    assert replace(checker, pause=finish).run(settle=3.0).outcomes == ()
    assert seen == [3.0]


def test_mending_takes_the_locks_of_the_controllers_and_looks_again_within(
    ground: Ground, checker: Checker, pool: PoolView
) -> None:
    volume = ceph_csi.make_volume(pool, "pvc-x", steps=3)
    held: list[LockKeys] = []

    @contextmanager
    def finish_first(_pool: Pool, locks: LockKeys) -> Iterator[None]:
        held.append(locks)
        # A CreateVolume that had the lock until now.
        ground.create(volume.image)
        pool.set_key(f"csi.volume.{volume.uuid}", "csi.imageid", ground.id_of(volume.image))
        yield

    report = replace(checker, hold=finish_first).run(repairs=True)
    assert held == [LockKeys(keys=("pvc-x", volume.volume_id), noun="Volume ID")]
    assert report.left == 0
    assert pool.images() == [volume.image]
    assert pool.keys("csi.volumes.default") == {"csi.volume.pvc-x": volume.uuid}
    assert checker.found() == []


def test_what_a_controller_has_locked_is_left_to_it(ground: Ground, checker: Checker) -> None:
    fsck_arrangements.image_missing(ground)
    before = checker.dump()

    def refuse(_pool: Pool, _locks: LockKeys) -> AbstractContextManager[object]:
        raise Aborted("CreateVolume is at it")

    report = replace(checker, hold=refuse).run(repairs=True)
    assert [one.problem for one in report.outcomes] == ["CreateVolume is at it"]
    assert report.left == 1
    assert checker.dump() == before


class Interference:
    """Does something right before the first durable step that its words name."""

    def __init__(self, words: str, act: Callable[[], None]) -> None:
        self.words = words
        self.act = act
        self.has_acted = False

    def before(self, step: str) -> None:
        if not self.has_acted and self.words in step:
            self.has_acted = True
            self.act()

    def after(self, step: str) -> None:
        pass


@contextmanager
def _interfered(checker: Checker, ceph: DevCluster, interference: Interference) -> Iterator[Checker]:
    with closing(Connections(timeouts=Timeouts(operation=20.0), writes=Writes(interference))) as connections:
        credentials = Credentials.from_secrets(ceph.secrets())
        with connections.use(",".join(ceph.monitors), credentials) as connection:
            pool = connection.pool(checker.look.pool.name, checker.look.pool.namespace)
            yield replace(checker, look=replace(checker.look, pool=pool, connection=connection))


def test_an_entry_that_gets_its_image_at_the_last_moment_is_kept(
    ground: Ground, checker: Checker, pool: PoolView, ceph: DevCluster
) -> None:
    volume = ceph_csi.make_volume(pool, "pvc-x", steps=3)

    def take_over() -> None:
        ground.create(volume.image)
        pool.set_key(f"csi.volume.{volume.uuid}", "csi.imageid", ground.id_of(volume.image))

    interference = Interference(f"removing object {pool.name}/csi.volume.", take_over)
    with _interfered(checker, ceph, interference) as one:
        one.run(repairs=True)
    assert interference.has_acted
    assert checker.found() == []
    assert pool.images() == [volume.image]
    assert pool.keys("csi.volumes.default") == {"csi.volume.pvc-x": volume.uuid}


def test_a_name_that_is_taken_anew_at_the_last_moment_is_kept(
    ground: Ground, checker: Checker, pool: PoolView, ceph: DevCluster
) -> None:
    fsck_arrangements.stale_name(ground)
    made: list[ceph_csi.CephCsiVolume] = []
    interference = Interference("removing key", lambda: made.append(ceph_csi.make_volume(pool, "pvc-x")))
    with _interfered(checker, ceph, interference) as one:
        one.run(repairs=True)
    assert pool.keys("csi.volumes.default") == {"csi.volume.pvc-x": made[0].uuid}
    assert checker.found() == []


def test_a_name_whose_object_is_made_at_the_last_moment_is_kept(
    checker: Checker, pool: PoolView, ceph: DevCluster
) -> None:
    """A controller that claims the name first has nothing with an age in between."""
    uuid = new_uuid()
    pool.set_key(fsck_arrangements.DIRECTORY, "csi.volume.pvc-x", uuid)
    values = {"csi.volname": "pvc-x", "csi.imagename": f"csi-vol-{uuid}"}
    make = Interference("creating object", lambda: pool.set_keys(f"csi.volume.{uuid}", values))
    with _interfered(checker, ceph, make) as one:
        report = one.run(repairs=True, only=frozenset({"stale-name"}))
    assert make.has_acted
    assert report.left == 0 or not report.outcomes[0].is_repaired
    assert pool.keys("csi.volumes.default") == {"csi.volume.pvc-x": uuid}
    assert pool.keys(f"csi.volume.{uuid}") == values


class Killed(BaseException):
    """The process has died."""


@pytest.mark.parametrize(
    "arrange",
    [
        fsck_arrangements.stale_name,
        fsck_arrangements.image_missing,
        fsck_arrangements.temp_without_clone,
        fsck_arrangements.snapshot_unfinished,
        fsck_arrangements.clone_unfinished,
        fsck_arrangements.deletion_unfinished,
    ],
)
def test_mending_that_is_killed_at_any_step_is_finished_by_the_next_run(
    arrange: Arrangement, ground: Ground, checker: Checker, ceph: DevCluster
) -> None:
    arrange(ground)

    def die() -> None:
        raise Killed

    for _ in range(10):
        interference = Interference("", die)
        with _interfered(checker, ceph, interference) as one, pytest.raises(Killed):
            # The steps before this one were done by the runs before it.
            one.run(repairs=True, removes_data=True)
        with _interfered(checker, ceph, _after_one_step(die)) as one:
            try:
                one.run(repairs=True, removes_data=True)
            except Killed:
                continue
            break
    assert checker.run(repairs=True, removes_data=True).left == 0
    assert checker.found() == []


class _SecondStep(Interference):
    def __init__(self, act: Callable[[], None]) -> None:
        super().__init__("", act)
        self._steps = 0

    def before(self, step: str) -> None:
        del step
        self._steps += 1
        if self._steps > 1:
            self.act()


def _after_one_step(act: Callable[[], None]) -> Interference:
    return _SecondStep(act)


def test_an_image_that_somebody_has_open_is_not_removed(ground: Ground, checker: Checker, pool: PoolView) -> None:
    name = fsck_arrangements.image_without_entry(ground)
    with pool.watched(name):
        report = checker.run(repairs=True, removes_data=True)
        assert "is open at" in report.outcomes[0].problem
        assert pool.images() == [name]
    assert checker.run(repairs=True, removes_data=True).left == 0
    assert pool.images() == []


def test_a_mirrored_image_without_an_entry_is_told_of_and_never_removed(
    ground: Ground, checker: Checker, pool: PoolView
) -> None:
    name = fsck_arrangements.image_without_entry(ground)
    pool.enable_mirroring(name)
    report = checker.run(repairs=True, removes_data=True)
    assert [one.finding.kind.name for one in report.outcomes] == ["image-without-entry"]
    assert "mirrored" in report.outcomes[0].finding.cause
    assert pool.images() == [name]


def test_what_is_not_of_this_driver_is_not_told_of(ground: Ground, checker: Checker, pool: PoolView) -> None:
    for name in ("image", "image-temp", f"kubernetes-dynamic-pvc-{new_uuid()}"):
        ground.create(name)
    ground.take_snapshot("image", f"backup-{new_uuid()}")
    ground.take_snapshot("image", "csi-snap-of-mine")
    ground.create("kept")
    rbd.RBD().trash_move(ground.ioctx, "kept", 0)
    # What the disaster recovery of ceph-csi v3.2 wrote.
    handle = f"0001-0003-dev-{1:016x}-{new_uuid()}"
    pool.set_key(fsck_arrangements.DIRECTORY, f"csi.volume.{handle}", handle)
    assert checker.found() == []


def test_a_deleted_image_that_is_kept_for_a_while_is_left_alone(ground: Ground, checker: Checker) -> None:
    name = f"csi-vol-{new_uuid()}"
    ground.create(name)
    rbd.RBD().trash_move(ground.ioctx, name, 600)
    assert checker.found() == []


def test_the_volumes_of_another_instance_are_not_nameless(checker: Checker, pool: PoolView) -> None:
    volume = ceph_csi.make_volume(pool, "pvc-x")
    pool.remove_object("csi.volumes.default")
    pool.set_key("csi.volumes.other", "csi.volume.pvc-x", volume.uuid)
    assert checker.found() == []
    # Without its name there, it is nobody's: which of the two directories it belongs to is not known.
    pool.remove_keys("csi.volumes.other")
    report = checker.run(repairs=True)
    assert [(one.finding.kind.name, one.is_repaired) for one in report.outcomes] == [("volume-without-name", False)]


def test_an_encrypted_volume_that_lost_its_keys_is_left_to_a_person(
    ground: Ground, checker: Checker, pool: PoolView
) -> None:
    fsck_arrangements.lost_entry(ground)
    pool.rbd("image-meta", "set", pool.images()[0], "rbd.csi.ceph.com/encrypted", "encrypted")
    report = checker.run(repairs=True, removes_data=True)
    assert report.left == 1
    assert "encrypted" in report.outcomes[0].finding.cause


def test_the_image_of_a_snapshot_without_its_parent_is_not_taken_for_whole(
    ground: Ground, checker: Checker, pool: PoolView
) -> None:
    """A clone that was cut off reads as zeros, and so would everything that is restored from it."""
    source = ceph_csi.make_volume(pool, "pvc-x", size="4M")
    snapshot = ceph_csi.make_snapshot(source, "snap-x", steps=3)
    ground.create(snapshot.image)
    pool.set_key(f"csi.snap.{snapshot.uuid}", "csi.imageid", ground.id_of(snapshot.image))
    report = checker.run(repairs=True, removes_data=True)
    assert [(one.finding.kind.name, one.is_repaired) for one in report.outcomes] == [("snapshot-missing", False)]


def test_volumes_whose_journal_is_in_another_pool_are_whole(
    checker: Checker, pool: PoolView, whole_pool: PoolView
) -> None:
    """ceph-csi v3.11 and later write the keys beside the image, v3.0 to v3.10 beside the directory."""
    store = checker.look.connection.pool(whole_pool.name)
    other = replace(checker, look=replace(checker.look, pool=store))
    home = replace(pool, namespace="")
    for name, keys_in in (("pvc-new", whole_pool), ("pvc-old", home)):
        volume = ceph_csi.make_volume(whole_pool, name, steps=1, size="4M")
        entry = f"csi.volume.{volume.uuid}"
        home.set_key("csi.volumes.default", f"csi.volume.{name}", f"{whole_pool.id():016x}/{volume.uuid}")
        keys_in.set_keys(entry, {"csi.volname": name, "csi.imagename": volume.image})
        keys_in.set_key(entry, "csi.journalpool", f"{home.id():016x}")
        whole_pool.rbd("create", volume.image, "--size", "4M")
        keys_in.set_key(entry, "csi.imageid", whole_pool.image(volume.image)["id"])
    try:
        found = [(one.finding.kind.name, one.is_repaired) for one in other.run(repairs=True).outcomes]
        # The old layout has nothing in the image's pool that says where the keys are: that has to be told.
        assert found == [("keys-lost", False)]
        journal_pool = checker.look.connection.pool(home.name)
        assert replace(other, look=replace(other.look, journal_pools=(journal_pool,))).found() == []
        here = replace(checker, look=replace(checker.look, pool=checker.look.connection.pool(home.name)))
        assert here.found() == []
    finally:
        for name in [name for name in home.objects() if name.startswith("csi.")]:
            home.remove_object(name)


def test_a_task_that_fails_is_told_with_its_reason(ground: Ground, checker: Checker, pool: PoolView) -> None:
    name = f"csi-vol-{new_uuid()}"
    ground.create(name)
    ground.take_snapshot(name, "by-hand")
    image_id = ground.id_of(name)
    rbd.RBD().trash_move(ground.ioctx, name, 0)
    pool.cluster.ceph("rbd", "task", "add", "trash", "remove", f"{pool.name}/{pool.namespace}/{image_id}")
    deadline = time.monotonic() + 60
    while not (report := checker.run(repairs=True)).outcomes:
        assert time.monotonic() < deadline, "the manager has not tried it"
        time.sleep(0.2)
    finding = report.outcomes[0].finding
    assert finding.kind.name == "task-failing"
    assert "snapshots by-hand" in finding.cause
    assert report.left == 1
    pool.rbd("snap", "purge", "--no-progress", "--image-id", image_id)


def test_all_of_it_at_once_is_mended(ground: Ground, checker: Checker) -> None:
    """One thing's mending is not another one's trouble."""
    for name, (first, *_) in MENDED.items():
        first(replace(ground, tag=f"-{name}"))
    report = checker.run(repairs=True, removes_data=True)
    assert [(one.finding.kind.name, one.problem) for one in report.outcomes if not one.is_repaired] == []
    assert {one.finding.kind.name for one in report.outcomes} >= set(MENDED)
    assert checker.found() == []


def test_a_lock_that_a_controller_holds_is_left_to_it(checker: Checker, store: Pool) -> None:
    locks = RadosLocks(instance_id="default", node="other", lease_seconds=30.0)
    try:
        with locks.hold(store, "pvc-x"):
            before = checker.dump()
            assert checker.run(repairs=True).outcomes == ()
            assert checker.dump() == before
        assert [name for name in before if name.startswith("csi.lock.")]
    finally:
        locks.close()
