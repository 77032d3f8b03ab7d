"""The journal on a real cluster; what it leaves is looked at with Ceph's own tools."""

import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from csi_host.errors import InvalidArgument
from csi_host_rbd.ceph import omap
from csi_host_rbd.ceph.cluster import Connection, Pool
from csi_host_rbd.ceph.connections import Connections, Timeouts
from csi_host_rbd.ceph.failures import BackendTimeout, ObjectNotFound, PermissionDenied
from csi_host_rbd.credentials import Credentials
from csi_host_rbd.devcluster import DevCluster
from csi_host_rbd.journal import Journal, NamesMismatch, NameTaken
from csi_host_rbd.testing.operations import OperationCounter
from csi_host_rbd.testing.pools import PoolView

pytestmark = pytest.mark.ceph

DIRECTORY = "csi.volumes.default"
UUID = "2a7c9c3e-0d5f-4c0e-9a52-6f0b7a1d9e11"


@dataclass(frozen=True, kw_only=True)
class Desk:
    """The journal of one place, as one controller has it."""

    connection: Connection
    store: Pool
    counter: OperationCounter

    def journal(self, store: Pool | None = None) -> Journal:
        return Journal(
            pool=store or self.store,
            instance_id="default",
            pool_with_id=lambda pool_id: self.connection.pool_with_id(pool_id, self.store.namespace),
        )


@pytest.fixture
def desk(ceph: DevCluster, pool: PoolView) -> Iterator[Desk]:
    with tempfile.TemporaryDirectory(prefix="csi-asok-") as directory:
        counter = OperationCounter(Path(directory))
        connections = Connections(timeouts=Timeouts(connect=5.0, operation=2.0), settings=counter.settings)
        with connections.use(",".join(ceph.monitors), Credentials.from_secrets(ceph.secrets())) as connection:
            yield Desk(
                connection=connection,
                store=connection.pool(pool.name, pool.namespace),
                counter=counter,
            )
        connections.close()


@pytest.fixture
def journal(desk: Desk) -> Journal:
    return desk.journal()


@pytest.fixture
def hang(ceph: DevCluster) -> Callable[[], AbstractContextManager[None]]:
    @contextmanager
    def hanging() -> Iterator[None]:
        ceph.stop_osd()
        try:
            yield
        finally:
            ceph.resume_osd()

    return hanging


def test_a_reservation_is_kept_as_ceph_csi_keeps_it(journal: Journal, pool: PoolView) -> None:
    made = journal.reserve("pvc-1", prefix="shop-", owner="shop")
    journal.store_image_id(made, "10a26f1c2b3d")
    assert pool.journal() == {
        DIRECTORY: {"csi.volume.pvc-1": made.uuid},
        f"csi.volume.{made.uuid}": {
            "csi.volname": "pvc-1",
            "csi.imagename": f"shop-{made.uuid}",
            "csi.imageid": "10a26f1c2b3d",
            "csi.volume.owner": "shop",
        },
    }


def test_a_reservation_is_found_by_name_and_by_uuid(journal: Journal) -> None:
    made = journal.reserve("pvc-ü 1", owner="shop")
    journal.store_image_id(made, "10a26f1c2b3d")
    expected = replace(made, image_id="10a26f1c2b3d")
    assert journal.find("pvc-ü 1") == expected
    assert journal.read(made.uuid) == expected
    assert journal.find("pvc-2") is None
    assert journal.read(UUID) is None


def test_undoing_leaves_nothing_and_can_be_repeated(journal: Journal, pool: PoolView) -> None:
    made = journal.reserve("pvc-1")
    journal.undo(made)
    journal.undo(made)
    assert pool.journal() == {DIRECTORY: {}}


def test_what_each_step_costs(journal: Journal, desk: Desk) -> None:
    costs = {}

    def measure(step: str, function: Callable[[], object]) -> None:
        with desk.counter.counting() as count:
            function()
        costs[step] = count.operations

    journal.reserve("warm")
    measure("find nothing", lambda: journal.find("pvc-1"))
    measure("reserve", lambda: journal.reserve("pvc-1"))
    measure("find", lambda: journal.find("pvc-1"))
    made = journal.find("pvc-1")
    assert made is not None
    measure("store", lambda: journal.store_image_id(made, "1"))
    measure("read", lambda: journal.read(made.uuid))
    measure("undo", lambda: journal.undo(made))
    assert costs == {"find nothing": 1, "reserve": 2, "find": 2, "store": 1, "read": 1, "undo": 2}


def test_of_two_controllers_that_reserve_a_name_at_once_one_gets_it_and_the_other_leaves_nothing(
    desk: Desk, pool: PoolView
) -> None:
    start, made, refused = threading.Barrier(6), [], []

    def reserve() -> None:
        one = desk.journal()
        start.wait()
        try:
            made.append(one.reserve("pvc-1"))
        except NameTaken as error:
            refused.append(error)

    threads = [threading.Thread(target=reserve) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(made), len(refused)) == (1, 5)
    assert not refused[0].is_final
    assert set(pool.journal()) == {DIRECTORY, f"csi.volume.{made[0].uuid}"}
    assert desk.journal().find("pvc-1") == made[0]


def test_undoing_does_not_take_a_name_that_somebody_else_has_by_now(journal: Journal, pool: PoolView) -> None:
    ours = journal.reserve("pvc-1")
    journal.undo(ours)
    theirs = journal.reserve("pvc-1")
    journal.undo(ours)
    assert pool.journal()[DIRECTORY] == {"csi.volume.pvc-1": theirs.uuid}
    assert journal.find("pvc-1") == theirs


def test_after_a_crash_within_undoing_the_handle_still_leads_to_the_rest(journal: Journal, pool: PoolView) -> None:
    made = journal.reserve("pvc-1")
    pool.remove_keys(DIRECTORY)
    found = journal.read(made.uuid)
    assert found is not None
    assert found.name == "pvc-1"
    journal.undo(found)
    assert pool.journal() == {DIRECTORY: {}}


def test_an_image_id_is_not_written_into_a_reservation_that_is_gone(journal: Journal, pool: PoolView) -> None:
    made = journal.reserve("pvc-1")
    journal.undo(made)
    with pytest.raises(ObjectNotFound):
        journal.store_image_id(made, "1")
    assert pool.journal() == {DIRECTORY: {}}


def test_a_name_that_leads_to_an_empty_object_is_free_again(journal: Journal, pool: PoolView) -> None:
    # What ceph-csi leaves when it dies between its steps.
    pool.create_object(f"csi.volume.{UUID}")
    pool.set_key(DIRECTORY, "csi.volume.pvc-1", UUID)
    assert journal.find("pvc-1") is None
    assert pool.journal() == {DIRECTORY: {}}
    assert journal.reserve("pvc-1").name == "pvc-1"


def test_a_name_without_an_object_is_taken_over_with_its_uuid(journal: Journal, pool: PoolView) -> None:
    pool.set_key(DIRECTORY, "csi.volume.pvc-1", UUID)
    assert journal.find("pvc-1") is None
    assert journal.reserve("pvc-1").uuid == UUID
    assert set(pool.journal()) == {DIRECTORY, f"csi.volume.{UUID}"}
    with pytest.raises(NameTaken):
        journal.reserve("pvc-1")


def test_after_a_crash_within_withdrawing_the_name_is_free(journal: Journal, pool: PoolView) -> None:
    made = journal.reserve("pvc-1")
    pool.remove_object(f"csi.volume.{made.uuid}")
    assert journal.find("pvc-1") is None
    again = journal.reserve("pvc-1")
    journal.withdraw(again)
    assert pool.journal() == {DIRECTORY: {}}


@pytest.mark.parametrize("value", [f"00000000000f4240/{UUID}", f"junk/{UUID}", "junk", "-1/x"])
def test_a_name_in_a_pool_that_is_gone_or_unreadable_is_free_again(
    journal: Journal, pool: PoolView, value: str
) -> None:
    pool.set_key(DIRECTORY, "csi.volume.pvc-1", value)
    assert journal.find("pvc-1") is None
    assert pool.journal() == {DIRECTORY: {}}


def test_names_that_contradict_each_other_are_reported_and_left_alone(journal: Journal, pool: PoolView) -> None:
    made = journal.reserve("pvc-1")
    pool.set_key(DIRECTORY, "csi.volume.pvc-2", made.uuid)
    before = pool.journal()
    with pytest.raises(NamesMismatch, match=r"internal state inconsistent, omap names mismatch.*pvc-1.*pvc-2"):
        journal.find("pvc-2")
    assert pool.journal() == before


def test_a_volume_from_before_prefixes_has_its_image_named_by_the_uuid(journal: Journal, pool: PoolView) -> None:
    pool.set_key(DIRECTORY, "csi.volume.pvc-1", UUID)
    pool.set_key(f"csi.volume.{UUID}", "csi.volname", "pvc-1")
    found = journal.find("pvc-1")
    assert found is not None
    assert found.image_name == f"csi-vol-{UUID}"


def test_an_object_that_lost_its_keys_is_found_by_its_handle_without_a_name(journal: Journal, pool: PoolView) -> None:
    pool.create_object(f"csi.volume.{UUID}")
    found = journal.read(UUID)
    assert found is not None
    assert (found.name, found.image_name) == ("", f"csi-vol-{UUID}")
    journal.undo(found)
    assert pool.journal() == {}


def test_another_instance_has_names_of_its_own(desk: Desk) -> None:
    made = desk.journal().reserve("pvc-1")
    other = Journal(pool=desk.store, instance_id="other", pool_with_id=desk.connection.pool_with_id)
    assert other.find("pvc-1") is None
    assert other.reserve("pvc-1").uuid != made.uuid


def test_an_image_in_another_pool_than_the_journal_is_found_from_both_sides(
    desk: Desk, pool: PoolView, whole_pool: PoolView
) -> None:
    """ceph-csi v3.0 to v3.10 in topology mode: an empty object beside the image, the keys beside the names."""
    images = whole_pool.in_namespace(pool.namespace)
    image_pool = desk.connection.pool(images.name, images.namespace)
    pool.set_key(DIRECTORY, "csi.volume.pvc-1", f"{image_pool.pool_id:016x}/{UUID}")
    images.create_object(f"csi.volume.{UUID}")
    pool.set_keys(
        f"csi.volume.{UUID}",
        {"csi.volname": "pvc-1", "csi.imagename": f"csi-vol-{UUID}", "csi.journalpool": f"{desk.store.pool_id:016x}"},
    )
    found = desk.journal().find("pvc-1")
    assert found is not None
    assert (found.pool.name, found.journal_pool.name) == (images.name, pool.name)
    desk.journal().store_image_id(found, "1")
    again = desk.journal().find("pvc-1")
    assert again is not None
    assert again.image_id == "1"
    desk.journal().undo(again)
    assert (pool.journal(), images.journal()) == ({DIRECTORY: {}}, {})


def test_a_name_that_cannot_be_a_key_is_refused_and_leaves_nothing(journal: Journal, pool: PoolView) -> None:
    with pytest.raises(InvalidArgument):
        journal.find("pvc\0-1")
    with pytest.raises(InvalidArgument):
        journal.reserve("pvc\0-1")
    assert pool.journal() == {}


def test_a_reservation_that_timed_out_is_gone_on_with_by_the_next_call(
    desk: Desk, pool: PoolView, hang: Callable[[], AbstractContextManager[None]]
) -> None:
    desk.journal().reserve("warm")
    with hang(), pytest.raises(BackendTimeout):
        desk.journal().reserve("pvc-1")
    # The operation is done by now: reads of this client come after it.
    assert desk.journal().find("pvc-1") is None
    made = desk.journal().reserve("pvc-1")
    assert pool.journal()[DIRECTORY]["csi.volume.pvc-1"] == made.uuid
    assert len([name for name in pool.journal() if "pvc-1" in pool.keys(name).values()]) == 1


def test_when_the_object_is_refused_for_good_the_name_is_given_back(
    ceph: DevCluster, pool: PoolView, make_user: Callable[[str], Credentials]
) -> None:
    # The directory may be written by this user, the objects of volumes only read.
    user = make_user(
        f"allow rwx pool={pool.name} namespace={pool.namespace} object_prefix csi.volumes., "
        f"allow r pool={pool.name} namespace={pool.namespace}"
    )
    connections = Connections(timeouts=Timeouts(connect=5.0, operation=2.0))
    with connections.use(",".join(ceph.monitors), user) as connection:
        store = connection.pool(pool.name, pool.namespace)
        journal = Journal(pool=store, instance_id="default", pool_with_id=connection.pool_with_id)
        with pytest.raises(PermissionDenied):
            journal.reserve("pvc-1")
    connections.close()
    assert pool.journal() == {DIRECTORY: {}}


@pytest.fixture
def make_user(ceph: DevCluster) -> Iterator[Callable[[str], Credentials]]:
    made = []

    def make(osd_capabilities: str) -> Credentials:
        made.append(f"user-{uuid.uuid4().hex[:8]}")
        key = ceph.ceph(
            "auth", "get-or-create-key", f"client.{made[-1]}", "mon", "profile rbd", "osd", osd_capabilities
        )
        return Credentials(user_id=made[-1], key=key.strip())

    yield make
    for name in made:
        ceph.ceph("auth", "rm", f"client.{name}")


def test_many_volumes_cost_a_lookup_no_more(desk: Desk, journal: Journal) -> None:
    names = {f"csi.volume.pvc-{number}": UUID for number in range(1500)}
    omap.claim_key(desk.store, DIRECTORY, "csi.volume.first", UUID)
    omap.set_keys(desk.store, DIRECTORY, names)
    made = journal.reserve("mine")
    with desk.counter.counting() as count:
        assert journal.find("mine") == made
    assert count.operations == 2
