"""Groups of images, as librbd has them on any Ceph."""

import pytest
import rbd

from csi_host_rbd.ceph import groups, registries
from csi_host_rbd.ceph.cluster import Pool

pytestmark = pytest.mark.ceph


def test_a_group_that_is_gone_may_be_removed_again(store: Pool) -> None:
    rbd.RBD().group_create(store.ioctx, "one")
    for _ in range(2):
        groups.remove_group(store, "one")
    assert list(registries.groups(store)) == []
