"""Many callers at once."""

from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from csi_host_rbd.testing.pools import PoolView
from csi_host_rbd.testing.rig import RbdRig, rbd_rig

pytestmark = pytest.mark.ceph

_CALLERS = 32


def _outcome_of_create(rig: RbdRig, name: str) -> str:
    try:
        return rig.create(name).volume_id
    except grpc.RpcError as error:
        return str(error.code().name)


def test_32_callers_with_one_name_make_one_image(rig: RbdRig) -> None:
    with ThreadPoolExecutor(_CALLERS) as callers:
        outcomes = set(callers.map(lambda _: _outcome_of_create(rig, "pvc-1"), range(_CALLERS)))
    handles = outcomes - {"ABORTED"}
    assert len(handles) == 1
    assert len(rig.pool.images()) == 1
    assert rig.create("pvc-1").volume_id in handles
    assert set(rig.pool.journal()) == {"csi.volumes.default", f"csi.volume.{handles.pop()[-36:]}"}


def test_two_controllers_that_race_for_one_name_make_one_image(
    pool: PoolView, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with (
        rbd_rig(pool, tmp_path_factory.mktemp("a")) as first,
        rbd_rig(pool, tmp_path_factory.mktemp("b")) as second,
        ThreadPoolExecutor(2) as callers,
    ):
        for number in range(10):
            name = f"pvc-{number}"
            outcomes = set(callers.map(lambda rig, name=name: _outcome_of_create(rig, name), (first, second)))
            assert first.create(name) == second.create(name)
            assert outcomes <= {"ABORTED", first.create(name).volume_id}
    assert len(pool.images()) == 10
    assert len(pool.keys("csi.volumes.default")) == 10
    assert len(pool.journal()) == 11


def test_32_callers_create_and_delete_their_own_and_nothing_is_left(rig: RbdRig) -> None:
    def live(number: int) -> None:
        for turn in range(3):
            rig.delete(rig.create(f"pvc-{number}-{turn}").volume_id)

    with ThreadPoolExecutor(_CALLERS) as callers:
        list(callers.map(live, range(_CALLERS)))
    assert rig.pool.images() == []
    assert rig.pool.journal() == {"csi.volumes.default": {}}
    rig.pool.wait_until_trash_is_empty()
