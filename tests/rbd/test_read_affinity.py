import json
from pathlib import Path

import pytest

from csi_host_rbd.clusters import ClusterConfig, Clusters, ClustersFileInvalid
from csi_host_rbd.read_affinity import ReadAffinity, crush_location

LABELS = {
    "kubernetes.io/hostname": "node-1.example.com",
    "topology.kubernetes.io/zone": "z1",
    "topology.kubernetes.io/region": "",
}


def affinity(config: ClusterConfig, *, is_enabled: bool = False, labels: tuple[str, ...] = ()) -> str:
    found = ReadAffinity(config_of=lambda _: config, labels=LABELS, is_enabled=is_enabled, location_labels=labels)
    return found.options("ceph-a")


def config(*, enabled: bool, labels: tuple[str, ...] = ()) -> ClusterConfig:
    return ClusterConfig(cluster_id="ceph-a", monitors=("m",), read_affinity=enabled, crush_location_labels=labels)


def test_labels_become_locations_as_ceph_csi_writes_them() -> None:
    assert crush_location(list(LABELS), LABELS) == "host:node-1-example-com|zone:z1"
    assert crush_location(["unknown/rack"], LABELS) == ""
    assert crush_location([], LABELS) == ""


def test_a_cluster_with_read_affinity_has_its_labels_or_the_flags() -> None:
    expected = "read_from_replica=localize,crush_location=zone:z1"
    zone = ("topology.kubernetes.io/zone",)
    assert affinity(config(enabled=True, labels=zone)) == expected
    assert affinity(config(enabled=True), is_enabled=True, labels=zone) == expected
    assert affinity(config(enabled=True, labels=zone), is_enabled=True, labels=("kubernetes.io/hostname",)) == expected


def test_without_a_yes_or_a_place_nothing_is_asked_for() -> None:
    zone = ("topology.kubernetes.io/zone",)
    assert affinity(config(enabled=False, labels=zone), is_enabled=True, labels=zone) == ""
    assert affinity(config(enabled=True), is_enabled=False, labels=zone) == ""
    assert affinity(config(enabled=True, labels=("topology.kubernetes.io/region",))) == ""


def test_a_cluster_that_is_not_configured_any_more_has_none(tmp_path: Path) -> None:
    clusters = Clusters(tmp_path / "config.json")
    found = ReadAffinity(config_of=clusters.find, labels=LABELS, is_enabled=True, location_labels=tuple(LABELS))
    assert found.options("ceph-a") == ""


@pytest.mark.parametrize("affinity", [{"enabled": "yes"}, {"crushLocationLabels": "zone"}, ["zone"]])
def test_what_the_file_says_wrongly_is_named(tmp_path: Path, affinity: object) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps([{"clusterID": "ceph-a", "monitors": ["m"], "readAffinity": affinity}]))
    with pytest.raises(ClustersFileInvalid, match=r"enabled|crushLocationLabels|readAffinity"):
        Clusters(file).find("ceph-a")


def test_what_the_file_says_is_read(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    members = {"enabled": True, "crushLocationLabels": ["topology.kubernetes.io/zone"]}
    file.write_text(json.dumps([{"clusterID": "ceph-a", "monitors": ["m"], "readAffinity": members}]))
    assert Clusters(file).find("ceph-a") == config(enabled=True, labels=("topology.kubernetes.io/zone",))
