"""A third party's wheel beside the host's, in a virtual environment of their own."""

import json
from pathlib import Path
from typing import Any

# The fixtures and their types are in conftest.py, which a test module cannot import.
Installation = Any


def _drivers(installation: Installation) -> dict[str, Any]:
    listed: dict[str, Any] = json.loads(installation.ask(installation.program, "drivers", "--output", "json"))
    return listed


def test_the_host_and_the_driver_come_from_their_wheels(installation: Installation) -> None:
    code = "import csi_host, csi_host_memory; print(csi_host.__file__); print(csi_host_memory.__file__)"
    for place in installation.ask(installation.python, "-c", code).splitlines():
        assert Path(place).is_relative_to(installation.directory)


def test_the_third_partys_driver_is_listed_with_its_distribution(installation: Installation) -> None:
    listed = _drivers(installation)
    assert [driver["name"] for driver in listed["drivers"]] == ["cephfs", "memory", "rbd"]
    memory = listed["drivers"][1]
    assert memory["distribution"] == {"name": "csi-host-memory-driver", "version": "0.1.0"}
    assert memory["default_driver_name"] == "memory.csi.example.com"
    assert listed["broken"] == []
    assert listed["conflicts"] == []


def test_the_third_partys_options_are_in_the_help(installation: Installation) -> None:
    help_text = installation.ask(installation.program, "--help")
    assert "--memory-directory" in help_text
    assert "--memory-filesystem" in help_text


def test_the_third_partys_driver_is_served_and_called(installation: Installation, tmp_path: Path) -> None:
    _assert_memory_serves(installation, tmp_path)


def test_a_plugin_that_raises_at_import_is_listed_as_broken_with_its_cause(
    installation_with_a_broken_plugin: Installation,
) -> None:
    listed = _drivers(installation_with_a_broken_plugin)
    (broken,) = listed["broken"]
    assert broken["entry_point"] == "battery"
    assert broken["distribution"] == {"name": "csi-host-flat-battery", "version": "3.1"}
    assert "the battery is flat" in broken["cause"]
    assert {"rbd", "memory"} <= {driver["name"] for driver in listed["drivers"]}


def test_the_table_for_people_names_the_broken_plugin_too(installation_with_a_broken_plugin: Installation) -> None:
    table = installation_with_a_broken_plugin.ask(installation_with_a_broken_plugin.program, "drivers")
    (line,) = [line for line in table.splitlines() if line.startswith("broken: ")]
    assert "csi-host-flat-battery" in line
    assert "the battery is flat" in line


def test_beside_a_broken_plugin_the_other_drivers_are_served(
    installation_with_a_broken_plugin: Installation, tmp_path: Path
) -> None:
    _assert_memory_serves(installation_with_a_broken_plugin, tmp_path)


def _assert_memory_serves(installation: Installation, tmp_path: Path) -> None:
    directory = f"--memory-directory={tmp_path}"
    with installation.serving("--driver", "memory", "--nodeid", "node-a", directory) as endpoint:
        call = ("call", "--endpoint", endpoint)
        info = json.loads(installation.ask(installation.program, *call, "GetPluginInfo"))
        node = json.loads(installation.ask(installation.program, *call, "NodeGetInfo"))
        assert json.loads(installation.ask(installation.program, *call, "Probe")) == {"ready": True}
    assert info["name"] == "memory.csi.example.com"
    assert info["vendor_version"]
    assert node["node_id"] == "node-a"
