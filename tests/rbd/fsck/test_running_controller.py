"""fsck --repair beside a controller that is busy with the same pool."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from csi_host_rbd.ceph.bindings import rados
from csi_host_rbd.testing import fsck_arrangements
from csi_host_rbd.testing.fsck_arrangements import Ground, new_uuid
from csi_host_rbd.testing.fsck_kit import Checker
from csi_host_rbd.testing.rig import GIB, RbdRig

pytestmark = pytest.mark.ceph

_CALLERS = 8
_ROUNDS = 6
_AGO_SECONDS = 2 * 3600
_CONDITIONAL = frozenset({"stale-name", "entry-without-name", "image-missing", "image-id-stale"})


def _write_long_ago(ground: Ground, name: str, keys: dict[str, str]) -> None:
    with rados.WriteOpCtx() as operation:
        operation.new(0)
        if keys:
            ground.ioctx.set_omap(operation, tuple(keys), tuple(value.encode() for value in keys.values()))
        ground.ioctx.operate_write_op(operation, name, int(time.time()) - _AGO_SECONDS)


def _leave_behind(ground: Ground, tag: str) -> set[str]:
    """Leave what crashes two hours ago would have left, and return the classes of it."""
    _write_long_ago(ground, f"csi.volume.{new_uuid()}", {})
    _write_long_ago(ground, f"rbd_object_map.{new_uuid()[:8]}", {})
    _write_long_ago(ground, f"rbd_id.csi-vol-{new_uuid()}", {})
    uuid = new_uuid()
    _write_long_ago(ground, f"csi.volume.{uuid}", {"csi.volname": f"pvc{tag}", "csi.imagename": f"csi-vol-{uuid}"})
    ground.pool.set_key(fsck_arrangements.DIRECTORY, f"csi.volume.pvc{tag}", uuid)
    ground.pool.set_key(fsck_arrangements.DIRECTORY, f"csi.volume.gone{tag}", new_uuid())
    return {"entry-without-name", "orphan-object-map", "image-remnants", "image-missing", "stale-name"}


def _unless_aborted(call: Callable[[], object]) -> None:
    try:
        call()
    except grpc.RpcError as error:
        if error.code() != grpc.StatusCode.ABORTED:
            raise


def _live(rig: RbdRig, caller: int) -> None:
    """Create, expand and delete volumes; two callers each share a name."""
    for turn in range(_ROUNDS):
        name = f"pvc-{caller // 2}-{turn}"
        try:
            volume_id = rig.create(name).volume_id
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.ABORTED:
                raise
            continue
        if caller % 2:
            _unless_aborted(lambda: rig.delete(volume_id))  # noqa: B023 (called at once)


def test_what_is_at_work_is_left_alone_and_what_was_left_behind_goes(
    rig: RbdRig, ground: Ground, checker: Checker
) -> None:
    kept = rig.create("pvc-kept")
    left = set()
    for tag in ("-a", "-b", "-c"):
        left |= _leave_behind(ground, tag)
    repaired: list[tuple[str, bool]] = []
    finished = threading.Event()

    def repair() -> None:
        while not finished.is_set():
            report = checker.run(repairs=True, removes_data=True, min_age=3600.0)
            repaired.extend((one.finding.kind.name, one.is_repaired) for one in report.outcomes)

    with ThreadPoolExecutor(_CALLERS + 1) as threads:
        repairing = threads.submit(repair)
        try:
            for call in [threads.submit(_live, rig, caller) for caller in range(_CALLERS)]:
                call.result()
        finally:
            finished.set()
        repairing.result()

    assert sorted(repaired) == sorted((name, True) for name in left for _ in range(3))
    # What the callers have made is whole.
    assert rig.expand(kept.volume_id, 2 * GIB).capacity_bytes == 2 * GIB
    for name in [key.removeprefix("csi.volume.") for key in ground.pool.key_names("csi.volumes.default")]:
        rig.delete(rig.create(name, capacity_range=None).volume_id)
    ground.pool.wait_until_trash_is_empty()
    assert checker.found() == []
    assert ground.pool.images() == []
    assert ground.pool.journal() == {"csi.volumes.default": {}}


def test_a_call_that_meets_a_repair_ends_well_or_can_be_repeated(rig: RbdRig, ground: Ground, checker: Checker) -> None:
    """Without a minimal age and without shared locks even reservations at work are undone: no volume may break.

    That holds for the journal, whose removals are conditional. The names of an image that librbd is just making have no
    condition to remove them by, so they are for the minimal age, or the locks, to protect.
    """
    made: dict[str, str] = {}
    finished = threading.Event()

    def create(caller: int) -> None:
        for turn in range(_ROUNDS):
            name = f"pvc-{caller}-{turn}"
            for _ in range(20):
                try:
                    made[name] = rig.create(name).volume_id
                    break
                except grpc.RpcError:
                    # Any error: what matters is what is there in the end.
                    continue

    def repair() -> None:
        while not finished.is_set():
            checker.run(repairs=True, min_age=0.0, only=_CONDITIONAL)

    with ThreadPoolExecutor(_CALLERS + 1) as threads:
        repairing = threads.submit(repair)
        try:
            for call in [threads.submit(create, caller) for caller in range(_CALLERS)]:
                call.result()
        finally:
            finished.set()
        repairing.result()

    assert checker.run(repairs=True).left == 0
    for name, volume_id in made.items():
        assert rig.create(name).volume_id == volume_id
        rig.delete(volume_id)
    ground.pool.wait_until_trash_is_empty()
    assert checker.found() == []
