"""The example manifests: they agree with each other and with the drivers, and csi-host takes every flag in them."""

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from csi_host_rbd.clusters import Clusters
from csi_host_rbd.parameters import parse_parameters
from csi_host_rbd.snapshot_parameters import parse_snapshot_parameters

_REPOSITORY = Path(__file__).parents[2]
_CSI_HOST = Path(sys.executable).with_name("csi-host")
_DRIVER_NAME = "rbd.csi.ceph.com"
_WORKLOADS = ("Deployment", "DaemonSet")

Manifest = dict[str, Any]


def _manifests() -> list[Manifest]:
    files = sorted((_REPOSITORY / "examples/kubernetes").glob("*.yaml"))
    return [manifest for file in files for manifest in yaml.safe_load_all(file.read_text())]


def _only(kind: str, name: str = "") -> Manifest:
    (found,) = [each for each in _manifests() if each["kind"] == kind and name in {"", each["metadata"]["name"]}]
    return found


def _containers(workload: Manifest) -> list[Manifest]:
    containers: list[Manifest] = workload["spec"]["template"]["spec"]["containers"]
    return containers


def _host(kind: str) -> Manifest:
    return next(each for each in _containers(_only(kind)) if each["name"] == "csi-host")


def _run(*argv: str, variables: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **(variables or {})}
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, env=environment, check=False)


def _expanded(words: Sequence[str]) -> list[str]:
    """Return the words with $(VARIABLE) replaced, as the kubelet does."""
    return [re.sub(r"\$\(\w+\)", "a-value", word) for word in words]


@pytest.mark.parametrize("kind", _WORKLOADS)
def test_csi_host_takes_every_flag_in_the_manifest(kind: str) -> None:
    ended = _run(str(_CSI_HOST), "config", *_expanded(_host(kind)["args"]))
    assert ended.returncode == 0, ended.stderr
    # A flag that is only tolerated for ceph-csi's manifests draws a warning; ours has none.
    assert ended.stderr == ""


def test_a_flag_that_does_not_exist_would_be_noticed() -> None:
    ended = _run(str(_CSI_HOST), "config", *_expanded(_host("DaemonSet")["args"]), "--no-such-flag")
    assert ended.returncode == 2


def test_the_liveness_probe_is_a_command_of_csi_host() -> None:
    program, *words = _host("Deployment")["livenessProbe"]["exec"]["command"]
    ended = _run(str(_CSI_HOST), *words)
    assert program == "csi-host"
    # Nothing listens there: 1 is the answer of a probe that was understood.
    assert ended.returncode == 1, ended.stderr


@pytest.mark.parametrize("kind", _WORKLOADS)
def test_the_sidecars_talk_to_the_socket_that_csi_host_listens_on(kind: str) -> None:
    (endpoint,) = [word for word in _host(kind)["args"] if word.startswith("--endpoint=")]
    sidecars = [each for each in _containers(_only(kind)) if each["name"] != "csi-host"]
    assert sidecars
    for sidecar in sidecars:
        assert f"--csi-address={endpoint.removeprefix('--endpoint=unix://')}" in sidecar["args"], sidecar["name"]


@pytest.mark.parametrize("kind", _WORKLOADS)
def test_every_volume_that_is_mounted_is_there(kind: str) -> None:
    volumes = {volume["name"] for volume in _only(kind)["spec"]["template"]["spec"]["volumes"]}
    mounted = {mount["name"] for container in _containers(_only(kind)) for mount in container["volumeMounts"]}
    assert mounted == volumes


@pytest.mark.parametrize("kind", _WORKLOADS)
def test_the_pod_may_live_longer_than_the_calls_that_csi_host_waits_for(kind: str) -> None:
    (grace,) = [word for word in _host(kind)["args"] if word.startswith("--grace-period=")]
    seconds = int(grace.removeprefix("--grace-period=").removesuffix("s"))
    assert _only(kind)["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > seconds


def test_everything_has_the_same_driver_name() -> None:
    registrar = next(each for each in _containers(_only("DaemonSet")) if each["name"] == "node-driver-registrar")
    directories = [
        volume["hostPath"]["path"] for volume in _only("DaemonSet")["spec"]["template"]["spec"]["volumes"][:1]
    ]
    assert _only("CSIDriver")["metadata"]["name"] == _DRIVER_NAME
    assert _only("StorageClass")["provisioner"] == _DRIVER_NAME
    assert all(f"--drivername={_DRIVER_NAME}" in _host(kind)["args"] for kind in _WORKLOADS)
    assert directories == [f"/var/lib/kubelet/plugins/{_DRIVER_NAME}"]
    assert f"--kubelet-registration-path={directories[0]}/csi.sock" in registrar["args"]


def test_the_driver_understands_the_class_and_the_clusters(tmp_path: Path) -> None:
    parameters = parse_parameters(_only("StorageClass")["parameters"])
    (tmp_path / "config.json").write_text(_only("ConfigMap")["data"]["config.json"])
    assert Clusters(tmp_path / "config.json").find(parameters.cluster_id).monitors
    assert set(_only("Secret")["stringData"]) == {"userID", "userKey"}


def test_the_class_names_the_secret_that_there_is() -> None:
    parameters, secret = _only("StorageClass")["parameters"], _only("Secret")["metadata"]
    for use in ("provisioner", "controller-expand", "node-stage"):
        assert parameters[f"csi.storage.k8s.io/{use}-secret-name"] == secret["name"]
        assert parameters[f"csi.storage.k8s.io/{use}-secret-namespace"] == secret["namespace"]


def test_the_driver_understands_the_class_of_snapshots_and_its_secret_is_there() -> None:
    found, secret = _only("VolumeSnapshotClass"), _only("Secret")["metadata"]
    parameters = found["parameters"]
    assert found["driver"] == _DRIVER_NAME
    assert parse_snapshot_parameters(parameters).cluster_id == _only("StorageClass")["parameters"]["clusterID"]
    assert parameters["csi.storage.k8s.io/snapshotter-secret-name"] == secret["name"]
    assert parameters["csi.storage.k8s.io/snapshotter-secret-namespace"] == secret["namespace"]


def test_the_claim_and_the_pod_use_what_is_there() -> None:
    claim = _only("PersistentVolumeClaim")
    assert claim["spec"]["storageClassName"] == _only("StorageClass")["metadata"]["name"]
    volumes = _only("Pod")["spec"]["volumes"]
    assert [volume["persistentVolumeClaim"]["claimName"] for volume in volumes] == [claim["metadata"]["name"]]


def test_every_service_account_is_there() -> None:
    accounts = {each["metadata"]["name"] for each in _manifests() if each["kind"] == "ServiceAccount"}
    used = {_only(kind)["spec"]["template"]["spec"]["serviceAccountName"] for kind in _WORKLOADS}
    assert used == accounts
