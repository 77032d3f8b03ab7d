"""Volumes that Kubernetes' own driver made before CSI, and volumes whose site was lost."""

import json
from pathlib import Path

import grpc
import pytest

from csi_host_rbd.cluster_mapping import ClusterMapping, MappingFileInvalid
from csi_host_rbd.migration import MigratedVolume, is_migrated, parse_migrated
from csi_host_rbd.testing import ceph_csi
from csi_host_rbd.testing.pools import PoolView
from csi_host_rbd.testing.rig import GIB, RbdRig, rbd_rig
from csi_host_rbd.volume_id import InvalidVolumeId, VolumeId

_HASH = "7982de6a23b77bce50b1ba9f2e879cce"


def test_the_handle_of_a_migrated_volume_is_decoded() -> None:
    handle = f"mig_mons-{_HASH}_image-57b066f0-5e5f-11e9-9a1c-0a580a800207_{b'my_pool'.hex()}"
    assert is_migrated(handle)
    assert parse_migrated(handle) == MigratedVolume(
        cluster_id=_HASH, pool="my_pool", image="kubernetes-dynamic-pvc-57b066f0-5e5f-11e9-9a1c-0a580a800207"
    )
    assert not is_migrated("0001-0004-ceph-0000000000000001-57b066f0-5e5f-11e9-9a1c-0a580a800207")


@pytest.mark.parametrize(
    "handle",
    [f"mig_mons-{_HASH}_image-x", f"mig_mons-{_HASH}_image-x_zz", "mig_mons-_image-x_61", "mig_image-mons-_a_"],
)
def test_a_handle_that_is_cut_or_junk_is_refused(handle: str) -> None:
    with pytest.raises(InvalidVolumeId):
        parse_migrated(handle)


@pytest.mark.ceph
def test_a_migrated_volume_is_expanded_and_deleted(rig: RbdRig) -> None:
    rig.pool.rbd("create", "kubernetes-dynamic-pvc-1", "--size", "1G", "--image-feature", "layering")
    handle = f"mig_mons-{rig.pool.cluster.cluster_id}_image-1_{rig.pool.name.encode().hex()}"
    assert rig.expand(handle, 2 * GIB).capacity_bytes == 2 * GIB
    before = rig.pool.journal()
    rig.delete(handle)
    rig.delete(handle)
    assert (rig.pool.images(), rig.pool.journal()) == ([], before)
    rig.pool.wait_until_trash_is_empty()
    elsewhere = f"mig_mons-{_HASH}_image-1_{rig.pool.name.encode().hex()}"
    with pytest.raises(grpc.RpcError) as refused:
        rig.delete(elsewhere)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_pairs_count_both_ways(tmp_path: Path) -> None:
    file = tmp_path / "mapping.json"
    mapping = ClusterMapping(file)
    assert list(mapping.elsewhere("a", 1)) == []
    file.write_text(
        json.dumps(
            [
                {"clusterIDMapping": {"a": "b"}, "RBDPoolIDMapping": [{"1": "2"}, {"11": "12"}]},
                {"clusterIDMapping": {"a": "c"}, "RBDPoolIDMapping": [{"1": "3"}], "CephFSFscIDMapping": [{"1": "4"}]},
            ]
        ),
        encoding="utf-8",
    )
    assert list(mapping.elsewhere("a", 1)) == [("b", 2), ("c", 3)]
    assert list(mapping.elsewhere("b", 12)) == [("a", 11)]
    assert list(mapping.elsewhere("a", 5)) == []


@pytest.mark.parametrize("text", ["{", "{}", "[1]", '[{"clusterIDMapping": 1}]', '[{"RBDPoolIDMapping": {"1": "2"}}]'])
def test_a_mapping_that_is_not_understood_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "mapping.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(MappingFileInvalid, match=r"mapping\.json"):
        list(ClusterMapping(file).elsewhere("a", 1))


@pytest.mark.ceph
def test_a_handle_of_a_lost_site_leads_to_the_other(pool: PoolView, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("site")
    mapping = directory / "mapping.json"
    here = pool.cluster.cluster_id
    pools = [{"777": str(pool.id())}]
    mapping.write_text(json.dumps([{"clusterIDMapping": {"lost": here}, "RBDPoolIDMapping": pools}]), encoding="utf-8")
    with rbd_rig(pool, directory, options={"clustermapping": mapping}) as rig:
        volume = ceph_csi.make_volume(pool, "pvc-1")
        ids = [(here, 777), ("lost", 777)]
        first, second = (str(VolumeId(cluster_id=one, pool_id=number, uuid=volume.uuid)) for one, number in ids)
        with pytest.raises(grpc.RpcError) as refused:
            rig.expand(first, 2 * GIB)
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        assert rig.expand(second, 2 * GIB).capacity_bytes == 2 * GIB
        rig.delete(second)
        assert pool.images() == []
