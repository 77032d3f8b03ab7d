import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

Invoke = Callable[..., Result]


@pytest.fixture
def settled(invoke: Invoke) -> Callable[..., dict[str, dict[str, str]]]:
    """What ``csi-host config`` says of some arguments."""

    def run(*arguments: str, **environment: str) -> dict[str, dict[str, str]]:
        result = invoke(["config", "--output=json", *arguments], environment)
        assert result.exit_code == 0, result.output
        found: dict[str, dict[str, str]] = json.loads(result.stdout)
        return found

    return run


Settled = Callable[..., dict[str, dict[str, str]]]


def test_it_shows_every_setting_in_effect_and_where_it_comes_from(settled: Settled, tmp_path: Path) -> None:
    file = tmp_path / "host.yaml"
    file.write_text("mood: grumpy\n")
    found = settled(f"--config={file}", "--driver=toy", NODE_ID="node-a")
    assert found["mood"] == {"value": "grumpy", "source": f"{file} line 1, key mood"}
    assert found["nodeid"] == {"value": "node-a", "source": "environment variable NODE_ID"}
    assert found["driver"] == {"value": "toy", "source": "--driver"}
    assert found["drivername"] == {"value": "toy.csi.example", "source": "default"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--type", "toy", "--nodeid", "a", "--nodeserver", "--loud"],
        ["--type=toy", "--nodeid=a", "--nodeserver=true", "--loud=T"],
        ["-type=toy", "-nodeid=a", "-nodeserver=1", "-loud"],
        ["-driver", "toy", "-nodeid", "a", "-nodeserver", "-loud=true", "-v=5", "--pidlimit=-1", "-enableprofiling"],
        ["--nodeserver=false", "--driver=other", "--driver=toy", "--nodeid=a", "--nodeserver", "--loud"],
    ],
)
def test_flags_are_taken_as_go_programs_take_them(settled: Settled, arguments: list[str]) -> None:
    found = settled(*arguments)
    assert (found["driver"]["value"], found["nodeid"]["value"]) == ("toy", "a")
    assert (found["nodeserver"]["value"], found["loud"]["value"]) == ("true", "true")


def test_a_value_that_looks_like_a_flag_stays_a_value(settled: Settled) -> None:
    found = settled("--driver=toy", "--nodeid", "a", "--clustername", "-nodeserver")
    assert found["clustername"]["value"] == "-nodeserver"
    assert found["nodeserver"]["value"] == "false"


def test_what_was_said_in_vain_is_warned_about_on_stderr(invoke: Invoke) -> None:
    result = invoke(["config", "--driver=toy", "--nodeid=a", "--csi-addons-endpoint=unix:///x", "--timeout=3s"])
    assert result.exit_code == 0
    assert result.stderr.splitlines() == [
        "csi-host: warning: --csi-addons-endpoint has no effect in csi-host",
        "csi-host: warning: --timeout has no effect in csi-host",
    ]


def test_a_wrong_setting_is_refused_as_in_serving(invoke: Invoke, tmp_path: Path) -> None:
    assert invoke(["config", "--driver=toy"]).exit_code == 2
    file = tmp_path / "host.yaml"
    file.write_text("drivr: toy\n")
    result = invoke(["config", f"--config={file}", "--driver=toy", "--nodeid=a"])
    assert result.exit_code == 1
    assert result.stderr == f"csi-host: {file} line 1, key drivr: no such setting, did you mean 'driver'?\n"
