"""That nothing stays behind of a call; ``make report-memory`` looks at thousands of them from outside."""

import gc
import logging
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from csi_host_rbd.testing.rig import RbdRig

pytestmark = pytest.mark.ceph

_CALLERS = 4
_ROUNDS = 10


def _live(rig: RbdRig, prefix: str) -> None:
    def one(number: int) -> None:
        for turn in range(_ROUNDS):
            rig.delete(rig.create(f"{prefix}-{number}-{turn}").volume_id)

    with ThreadPoolExecutor(_CALLERS) as callers:
        list(callers.map(one, range(_CALLERS)))


def _objects() -> Counter[str]:
    gc.collect()
    # Log records are kept by pytest, to be shown when the test fails.
    return Counter(type(each).__qualname__ for each in gc.get_objects() if not isinstance(each, logging.LogRecord))


def test_creating_and_deleting_leaves_no_objects_and_no_threads(rig: RbdRig) -> None:
    _live(rig, "warm-up")
    before, threads = _objects(), threading.active_count()
    _live(rig, "measured")
    grown = _objects() - before
    # One object of a kind for every second volume would be seen; what the pools keep of their threads is less.
    assert all(count < _CALLERS * _ROUNDS / 2 for count in grown.values()), grown
    assert threading.active_count() <= threads + 2 * _CALLERS
