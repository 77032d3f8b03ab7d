"""The journal's entries of group snapshots, and groups of librbd's, on a real cluster of any release."""

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime

import pytest

from csi_host.errors import InvalidArgument
from csi_host_rbd.ceph import groups
from csi_host_rbd.ceph.cluster import Pool
from csi_host_rbd.ceph.connections import Connections, Timeouts
from csi_host_rbd.ceph.create import ImageOptions, create_image
from csi_host_rbd.ceph.failures import ImageInGroup
from csi_host_rbd.credentials import Credentials
from csi_host_rbd.group_journal import GroupJournal
from csi_host_rbd.group_parameters import parse_group_parameters
from csi_host_rbd.journal import Journal
from csi_host_rbd.reservations import GROUPS
from csi_host_rbd.testing.pools import PoolView

_MANY = 1300


@pytest.fixture
def store(pool: PoolView) -> Iterator[Pool]:
    connections = Connections(timeouts=Timeouts())
    credentials = Credentials.from_secrets(pool.cluster.secrets())
    with closing(connections), connections.use(",".join(pool.cluster.monitors), credentials) as connection:
        yield connection.pool(pool.name, pool.namespace)


@pytest.fixture
def journal(store: Pool) -> GroupJournal:
    return GroupJournal(Journal(pool=store, instance_id="default", pool_with_id=lambda _: store, kind=GROUPS))


@pytest.mark.ceph
def test_the_snapshots_of_a_group_are_known_all_at_once_and_only_then_is_it_whole(
    pool: PoolView, journal: GroupJournal
) -> None:
    volumes = [f"volume-{number:04d}" for number in range(_MANY)]
    made = journal.reserve("group-1", prefix="mine-", volume_ids=volumes)
    found = journal.find("group-1")
    assert found is not None
    assert (found.is_whole, list(found.members)) == (False, volumes)
    assert found.created_at is not None
    assert abs((datetime.now(UTC) - found.created_at).total_seconds()) < 60
    journal.store_snapshots(made, {volume: f"snapshot of {volume}" for volume in volumes})
    whole = journal.find("group-1")
    assert whole is not None
    assert whole.is_whole
    assert whole.members["volume-1299"] == "snapshot of volume-1299"
    assert whole.reservation.image_name == f"mine-{made.reservation.uuid}"
    journal.undo(made)
    assert journal.find("group-1") is None
    assert pool.journal() == {"csi.groups.default": {}}


@pytest.mark.ceph
def test_the_entry_of_ceph_csi_is_read_whatever_its_time_looks_like(pool: PoolView, journal: GroupJournal) -> None:
    made = journal.reserve("group-1", prefix="", volume_ids=["volume-1"])
    name = f"csi.volume.group.{made.reservation.uuid}"
    assert pool.keys(name).keys() == {"csi.volname", "csi.groupname", "csi.creationtime", "volume-1"}
    for text, expected in (
        ("2024-05-01T12:00:00.123456789Z", datetime(2024, 5, 1, 12, 0, 0, 123456, tzinfo=UTC)),
        ("2024-05-01T14:00:00+02:00", datetime(2024, 5, 1, 12, 0, 0, tzinfo=UTC)),
        ("yesterday", None),
    ):
        pool.set_key(name, "csi.creationtime", text)
        assert journal.entry(made.reservation).created_at == expected


@pytest.mark.ceph
def test_an_image_is_in_one_group_and_every_step_can_be_made_again(pool: PoolView, store: Pool) -> None:
    create_image(store, "image-1", 2**22, ImageOptions())
    temporary = f"csi-vol-group-{'0' * 8}-0000-4000-8000-{'0' * 12}-temp"
    assert groups.group_of(store, "image-1") == ""
    for _ in range(2):
        groups.create_group(store, temporary)
        groups.add_image(store, temporary, "image-1")
    assert groups.group_of(store, "image-1") == temporary
    groups.create_group(store, "somebodys")
    with pytest.raises(ImageInGroup, match=temporary):
        groups.add_image(store, "somebodys", "image-1")
    assert [groups.is_temporary(name) for name in (temporary, "somebodys", "", "my-temp")] == [
        True,
        False,
        False,
        False,
    ]
    for _ in range(2):
        groups.remove_group(store, temporary)
    assert groups.group_of(store, "image-1") == ""
    assert pool.rbd("group", "ls").split() == ["somebodys"]


def test_a_class_says_how_groups_and_snapshots_are_called() -> None:
    names = {f"csi.storage.k8s.io/volumegroupsnapshot/{key}": key for key in ("name", "namespace")}
    parsed = parse_group_parameters(
        {"clusterID": "c", "pool": "p", "volumeGroupNamePrefix": "g-", "snapshotNamePrefix": "s-", **names}
    )
    assert (parsed.name_prefix, parsed.of_snapshots.cluster_id, parsed.of_snapshots.name_prefix) == ("g-", "c", "s-")
    assert parsed.of_snapshots.metadata == names
    assert parse_group_parameters({}).name_prefix == "csi-vol-group-"
    for wrong in ({"volumeGroupNamePrefix": ""}, {"volumeGroupNamePrefix": "a/b"}, {"pool": ""}):
        with pytest.raises(InvalidArgument, match=next(iter(wrong))):
            parse_group_parameters(wrong)
