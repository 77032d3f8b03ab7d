"""Each class, arranged for real: found, left alone without --repair, mended, and the neighbours untouched."""

from collections.abc import Iterable

import pytest

from csi_host_rbd.fsck.classes import CLASSES, Mending
from csi_host_rbd.testing import ceph_csi
from csi_host_rbd.testing.fsck_arrangements import MENDED, TOLD, Arrangement, Ground
from csi_host_rbd.testing.fsck_kit import Checker, Dumped
from csi_host_rbd.testing.pools import PoolView

pytestmark = pytest.mark.ceph

_SHARED = ("rbd_directory", "rbd_trash", "rbd_task", "rbd_children", "rbd_info", "rbd_group_directory")


def _cases(table: Iterable[tuple[str, tuple[Arrangement, ...]]]) -> list[object]:
    return [pytest.param(name, one, id=f"{name}-{one.__name__}") for name, many in table for one in many]


@pytest.fixture
def neighbours(request: pytest.FixtureRequest, pool: PoolView, checker: Checker) -> Dumped:
    """A volume, for what is about clones a snapshot of it and a volume from that too: all that they consist of."""
    volume = ceph_csi.make_volume(pool, "pvc-1", size="4M")
    if any(word in request.node.name for word in ("snapshot", "clone", "child", "parent")):
        ceph_csi.make_restore(ceph_csi.make_snapshot(volume, "snap-1"), "pvc-2")
    dumped = checker.dump()
    assert checker.found() == []
    return dumped


def _assert_untouched(before: Dumped, after: Dumped) -> None:
    for name, (data, keys, attributes) in before.items():
        data_now, keys_now, attributes_now = after[name]
        if name in _SHARED or name.startswith(("csi.volumes.", "csi.snaps.", "csi.groups.")):
            assert keys.items() <= keys_now.items(), name
        else:
            assert (data_now, keys_now, attributes_now) == (data, keys, attributes), name


@pytest.mark.parametrize(("name", "arrange"), _cases(MENDED.items()))
def test_it_is_found_and_mended_and_nothing_else_is_touched(
    name: str, arrange: Arrangement, ground: Ground, checker: Checker, neighbours: Dumped
) -> None:
    subject = arrange(ground)
    arranged = checker.dump()

    report = checker.run()
    told = [(one.finding.kind.name, one.finding.objects) for one in report.outcomes]
    assert [found for found, _ in told] == [name], told
    assert any(subject in one for one in told[0][1]), told
    assert report.outcomes[0].finding.steps
    assert report.outcomes[0].finding.mending is CLASSES[name].mending
    assert checker.dump() == arranged, "looking changes nothing"

    mending = CLASSES[name].mending
    if mending is Mending.REMOVES_DATA:
        assert [one.is_repaired for one in checker.run(repairs=True).outcomes] == [False]
        assert checker.dump() == arranged, "data goes only when that is said"
    repaired = checker.run(repairs=True, removes_data=mending is Mending.REMOVES_DATA)
    assert [(one.problem, one.is_repaired) for one in repaired.outcomes if one.finding.kind.name == name] == [
        ("", True)
    ]
    assert repaired.left == 0
    again = checker.run(repairs=True)
    assert again.outcomes == ()
    _assert_untouched(neighbours, checker.dump())


@pytest.mark.parametrize(("name", "arrange"), _cases(TOLD.items()))
def test_it_is_told_and_left_to_a_person(
    name: str, arrange: Arrangement, ground: Ground, checker: Checker, neighbours: Dumped
) -> None:
    subject = arrange(ground)
    arranged = checker.dump()
    report = checker.run(repairs=True, removes_data=True)
    told = [(one.finding.kind.name, one.finding.objects) for one in report.outcomes]
    assert [found for found, _ in told] == [name], told
    assert any(subject in one for one in (*told[0][1], report.outcomes[0].finding.cause)), told
    assert report.left == 1
    assert checker.dump() == arranged
    _assert_untouched(neighbours, arranged)


def test_every_class_is_arranged() -> None:
    # A failing task takes the manager half a minute; it has a test of its own.
    assert {*MENDED, *TOLD, "task-failing"} == set(CLASSES)
