import json
import os
from pathlib import Path
from typing import Any

import pytest

from csi_host_rbd.clusters import ClusterConfig, ClusterNotConfigured, Clusters, ClustersFileInvalid


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.json"


def _write(file: Path, *elements: Any) -> None:
    # As a ConfigMap changes: a new file takes the old one's place.
    new = file.with_suffix(".new")
    new.write_text(json.dumps(elements))
    new.replace(file)


def test_a_cluster_is_found_with_all_its_settings(file: Path) -> None:
    _write(
        file,
        {"clusterID": "other", "monitors": ["x"]},
        {
            "clusterID": "ceph-a",
            "monitors": ["10.0.0.1:6789", "10.0.0.2:6789"],
            "rbd": {"radosNamespace": "tenant", "netNamespaceFilePath": "/run/ns", "mirrorDaemonCount": 2},
            "cephFS": {"subvolumeGroup": "csi"},
            "unknown": {"is": "ignored"},
        },
    )
    found = Clusters(file).find("ceph-a")
    assert found == ClusterConfig(
        cluster_id="ceph-a",
        monitors=("10.0.0.1:6789", "10.0.0.2:6789"),
        rados_namespace="tenant",
        net_namespace_file="/run/ns",
        mirror_daemon_count=2,
    )
    assert found.mon_host == "10.0.0.1:6789,10.0.0.2:6789"


def test_what_is_not_said_has_ceph_csi_s_defaults(file: Path) -> None:
    _write(file, {"clusterID": "ceph-a", "monitors": ["m"], "rbd": None})
    assert Clusters(file).find("ceph-a") == ClusterConfig(cluster_id="ceph-a", monitors=("m",))


def test_a_cluster_that_is_not_there_is_named_in_ceph_csi_s_words(file: Path) -> None:
    _write(file, {"clusterID": "ceph-a", "monitors": ["m"]})
    with pytest.raises(ClusterNotConfigured, match="missing configuration for cluster ID 'ceph-b'"):
        Clusters(file).find("ceph-b")


def test_an_edit_needs_no_restart(file: Path) -> None:
    clusters = Clusters(file)
    _write(file, {"clusterID": "ceph-a", "monitors": ["a"]})
    assert clusters.find("ceph-a").monitors == ("a",)
    _write(file, {"clusterID": "ceph-a", "monitors": ["b"]})
    assert clusters.find("ceph-a").monitors == ("b",)


def test_an_edit_that_leaves_size_and_time_as_they_were_is_seen_too(file: Path) -> None:
    clusters = Clusters(file)
    _write(file, {"clusterID": "ceph-a", "monitors": ["a"]})
    before = file.stat()
    assert clusters.find("ceph-a").monitors == ("a",)
    _write(file, {"clusterID": "ceph-a", "monitors": ["b"]})
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert clusters.find("ceph-a").monitors == ("b",)


def test_a_file_that_broke_is_an_error_until_it_is_mended(file: Path) -> None:
    clusters = Clusters(file)
    _write(file, {"clusterID": "ceph-a", "monitors": ["a"]})
    clusters.find("ceph-a")
    file.write_text("[")
    with pytest.raises(ClustersFileInvalid):
        clusters.find("ceph-a")
    _write(file, {"clusterID": "ceph-a", "monitors": ["a"]})
    assert clusters.find("ceph-a").monitors == ("a",)


def test_a_cluster_that_is_wrong_does_not_hurt_the_others(file: Path) -> None:
    _write(file, {"clusterID": "bad", "monitors": []}, {"clusterID": "good", "monitors": ["m"]})
    clusters = Clusters(file)
    assert clusters.find("good").monitors == ("m",)
    with pytest.raises(ClustersFileInvalid, match="'bad': monitors"):
        clusters.find("bad")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('[{"clusterID": "a", "hidden-word": ', "line 1"),
        ('{"clusterID": "hidden-word"}', "expected an array of objects"),
        ("[" * 100_000, "is not JSON"),
        ('["hidden-word"]', "expected an array of objects"),
        ('[{"monitors": ["hidden-word"]}]', "element 0: expected a clusterID"),
        ('[{"clusterID": "a", "monitors": "hidden-word"}]', "monitors: expected a list"),
        ('[{"clusterID": "a", "monitors": ["m"], "rbd": "hidden-word"}]', "rbd: expected an object"),
        ('[{"clusterID": "a", "monitors": ["m"], "rbd": {"radosNamespace": 5}}]', "radosNamespace: expected text"),
        ('[{"clusterID": "a", "monitors": ["m"], "rbd": {"mirrorDaemonCount": -1}}]', "mirrorDaemonCount"),
    ],
)
def test_what_is_wrong_is_named_with_the_file_and_without_its_text(file: Path, text: str, why: str) -> None:
    file.write_text(text)
    with pytest.raises(ClustersFileInvalid, match=why) as caught:
        Clusters(file).find("a")
    assert str(file) in str(caught.value)
    assert "hidden-word" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(file: Path) -> None:
    with pytest.raises(ClustersFileInvalid, match="No such file"):
        Clusters(file).find("a")
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ClustersFileInvalid, match="UTF-8"):
        Clusters(file).find("a")
