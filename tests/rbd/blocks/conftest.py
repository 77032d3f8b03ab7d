from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from csi_host_rbd.testing.disks import MakeDisk, Reader, make_disk_on, opened_pool
from csi_host_rbd.testing.rig import RbdRig


@pytest.fixture
def ioctx(rig: RbdRig) -> Iterator[Any]:
    with opened_pool(rig) as one:
        yield one


@pytest.fixture
def reader(rig: RbdRig) -> Reader:
    return Reader(rig=rig)


@pytest.fixture
def make_disk(rig: RbdRig, ioctx: Any) -> MakeDisk:
    return partial(make_disk_on, rig, ioctx)
