"""``csi-host rbd fsck`` as it is called: what it prints, its exit code, and what it does not say."""

import json
import os
import pty
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from csi_host.process import run
from csi_host_rbd.cli import rbd
from csi_host_rbd.devcluster import DevCluster
from csi_host_rbd.fsck.classes import CLASSES
from csi_host_rbd.testing import ceph_csi, fsck_arrangements
from csi_host_rbd.testing.fsck_arrangements import Ground
from csi_host_rbd.testing.pools import PoolView
from csi_host_rbd.testing.rig import write_clusters_file

pytestmark = pytest.mark.ceph

Call = Callable[..., Result]
_ONLY_OURS = {"abandoned-lock", "child-not-registered", "id-object-missing", "image-not-listed", "orphan-header"}
MEMBERS = {"class", "severity", "cause", "objects", "mending", "repair", "commands", "repaired", "problem"}


@pytest.fixture
def arguments(pool: PoolView, tmp_path: Path) -> list[str]:
    clusters_file = str(write_clusters_file(pool, tmp_path))
    place = ["--clusterid", pool.cluster.cluster_id, "--cephcsiconfig", clusters_file, "--pool", pool.name]
    return ["fsck", *place, "--secrets", str(pool.cluster.secret_file), "--settle", "0"]


@pytest.fixture
def call(arguments: list[str], ceph: DevCluster) -> Call:
    def invoke(*more: str, arguments: list[str] = arguments) -> Result:
        result = CliRunner().invoke(rbd, [*arguments, *more])
        assert ceph.secrets()["userKey"] not in result.output
        return result

    return invoke


def _json(result: Result) -> Any:
    return json.loads(result.stdout)


def test_a_clean_place_is_said_to_be_clean(call: Call, pool: PoolView) -> None:
    ceph_csi.make_volume(pool, "pvc-1")
    result = call("--min-age", "0")
    assert (result.exit_code, result.stdout) == (0, f"{pool.name}/{pool.namespace}: clean\n")


def test_findings_are_an_exit_code_and_text_with_what_mends_them(call: Call, ground: Ground) -> None:
    image = fsck_arrangements.image_missing(ground)
    result = call("--min-age", "0")
    assert result.exit_code == 1
    for words in ("1 finding\n", "image-missing (warning)", image, "--repair --only image-missing", "rados --pool"):
        assert words in result.stdout


def test_the_command_lines_that_are_told_do_mend(call: Call, ground: Ground) -> None:
    """All but those that no tool of Ceph's can do."""
    for name, (first, *_) in fsck_arrangements.MENDED.items():
        if name not in _ONLY_OURS:
            first(replace(ground, tag=f"-{name}"))
    told = set()
    for _ in range(3):
        for finding in _json(call("--min-age", "0", "--output", "json"))["places"][0]["findings"]:
            told.add(finding["class"])
            for command in finding["commands"]:
                _run_told(ground.pool.cluster, command)
    assert told >= fsck_arrangements.MENDED.keys() - _ONLY_OURS
    assert call("--min-age", "0").exit_code == 0


def _run_told(cluster: DevCluster, line: str) -> None:
    for command in line.split("; "):
        program, *words = shlex.split(command)
        run([program, "--conf", str(cluster.ceph_conf), *words], timeout=60.0)


def test_json_has_the_same_members_whatever_is_found(call: Call, ground: Ground, pool: PoolView) -> None:
    fsck_arrangements.image_missing(ground)
    fsck_arrangements.name_unreadable(Ground(pool=ground.pool, store=ground.store, tag="-2"))
    result = call("--output", "json", "--min-age", "0")
    assert result.exit_code == 1
    answer = _json(result)
    assert set(answer) == {"clean", "places"}
    assert answer["clean"] is False
    (place,) = answer["places"]
    assert set(place) == {"pool", "namespace", "findings", "young", "unread"}
    assert (place["pool"], place["namespace"]) == (pool.name, pool.namespace)
    assert len(place["findings"]) == 2
    for finding in place["findings"]:
        assert set(finding) == MEMBERS
        assert finding["class"] in CLASSES
        assert finding["severity"] == CLASSES[finding["class"]].severity
        assert {type(one) for one in (*finding["objects"], *finding["commands"])} == {str}
        assert (finding["repaired"], finding["problem"]) == (False, "")


def test_repair_mends_what_is_asked_for_and_nothing_else(call: Call, ground: Ground) -> None:
    fsck_arrangements.image_missing(ground)
    fsck_arrangements.entry_without_name(Ground(pool=ground.pool, store=ground.store, tag="-2"))
    result = call("--min-age", "0", "--repair", "--only", "entry-without-name", "--output", "json")
    assert result.exit_code == 0
    assert [(one["class"], one["repaired"]) for one in _json(result)["places"][0]["findings"]] == [
        ("entry-without-name", True)
    ]
    result = call("--min-age", "0", "--repair")
    assert result.exit_code == 0
    assert "image-missing (repaired)" in result.stdout
    assert call("--min-age", "0").exit_code == 0


def test_what_is_young_is_counted(call: Call, ground: Ground) -> None:
    fsck_arrangements.image_missing(ground)
    result = call("--repair")
    assert result.exit_code == 0
    assert "clean, 1 too young to judge" in result.stdout


def test_without_listing_objects_what_names_lead_to_is_still_found(call: Call, ground: Ground) -> None:
    fsck_arrangements.image_missing(ground)
    fsck_arrangements.image_without_entry(ground)
    fsck_arrangements.entry_without_name(Ground(pool=ground.pool, store=ground.store, tag="-2"))
    answer = _json(call("--min-age", "0", "--skip-objects", "--output", "json"))
    found = sorted(one["class"] for one in answer["places"][0]["findings"])
    assert found == ["image-missing", "image-without-entry"]


def test_all_namespaces_of_a_pool_are_looked_at(call: Call, ground: Ground, pool: PoolView) -> None:
    fsck_arrangements.image_missing(ground)
    answer = _json(call("--min-age", "0", "--all-namespaces", "--output", "json"))
    findings = {place["namespace"]: len(place["findings"]) for place in answer["places"]}
    assert findings[pool.namespace] == 1
    assert "" in findings


def test_monitors_do_instead_of_a_configuration(call: Call, ground: Ground, pool: PoolView, ceph: DevCluster) -> None:
    fsck_arrangements.image_missing(ground)
    place = ["--monitors", ",".join(ceph.monitors), "--pool", pool.name, "--namespace", pool.namespace]
    arguments = ["fsck", *place, "--secrets", str(ceph.secret_file), "--settle", "0", "--min-age", "0"]
    assert call("--repair", arguments=arguments).exit_code == 0
    assert call(arguments=arguments).stdout == f"{pool.name}/{pool.namespace}: clean\n"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (["--clusterid", "nobodys"], "nobodys"),
        (["--pool", "nobodys"], "nobodys"),
        (["--cephcsiconfig", "/nonexistent"], "/nonexistent"),
    ],
)
def test_when_it_cannot_look_the_exit_code_says_so(call: Call, changed: list[str], words: str) -> None:
    result = call(*changed)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stdout == ""


def test_a_key_that_is_refused_is_not_shown(call: Call, tmp_path: Path, ceph: DevCluster, arguments: list[str]) -> None:
    key = ceph.secrets()["userKey"]
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps({"userID": "nobody", "userKey": key}), encoding="utf-8")
    arguments[arguments.index("--secrets") + 1] = str(wrong)
    result = call(arguments=arguments)
    assert result.exit_code == 2
    assert "client.nobody" in result.stderr
    wrong.write_text("{]", encoding="utf-8")
    assert call(arguments=arguments).exit_code == 2


@pytest.mark.parametrize(
    "wrong",
    [
        ["--monitors", "127.0.0.1"],
        ["--remove-data"],
        ["--repair", "--remove-data"],
        ["--only", "nonsense"],
        ["--min-age", "soon"],
        ["--namespace", "a", "--all-namespaces"],
    ],
)
def test_a_wrong_command_line_is_a_usage_error(call: Call, wrong: list[str]) -> None:
    result = call(*wrong)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr


def test_every_class_can_be_listed_without_a_cluster() -> None:
    result = CliRunner().invoke(rbd, ["fsck", "--list-classes"])
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == list(CLASSES)


def test_progress_is_shown_on_a_terminal_and_only_there(arguments: list[str]) -> None:
    argv = [sys.executable, "-c", "from csi_host_rbd.cli import rbd; rbd()", *arguments]
    quiet = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    assert quiet.stderr == ""
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        shown = subprocess.run(argv, stdout=subprocess.PIPE, stderr=theirs, text=True, check=True, timeout=60)
        os.close(theirs)
        text = terminal.read(65536).decode()
    assert shown.stdout == quiet.stdout
    assert "objects" in text


def test_without_the_bindings_of_ceph_it_says_so_and_the_other_commands_stay() -> None:
    program = "import sys; sys.modules['rados'] = None; from csi_host_rbd.cli import rbd; rbd()"
    helped = subprocess.run(
        [sys.executable, "-c", program, "--help"], capture_output=True, text=True, check=False, timeout=60
    )
    assert helped.returncode == 0
    assert "dev-cluster" in helped.stdout
    argv = [sys.executable, "-c", program, "fsck", "--pool", "rbd"]
    refused = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    assert refused.returncode == 2
    assert "python3-rados" in refused.stderr
