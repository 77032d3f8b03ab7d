import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from csi_host.settings import IGNORED_FLAGS, SERVE_SETTINGS
from csi_host.testing.distributions import write_distribution

Invoke = Callable[..., Result]
CSI_HOST = str(Path(sys.executable).with_name("csi-host"))


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-W", "error", CSI_HOST, *arguments], capture_output=True, text=True, check=False, timeout=60
    )


def test_help_shows_every_setting_the_drivers_options_and_apart_from_them_what_has_no_effect(invoke: Invoke) -> None:
    shown = invoke(["--help"]).output
    main, _, without_effect = shown.partition("Accepted for ceph-csi's manifests, without effect:")
    for setting in SERVE_SETTINGS:
        assert f"--{setting.name}" in main
    assert "Options of driver toy:" in main
    assert "--mood MOOD" in main
    for setting in IGNORED_FLAGS:
        assert f"--{setting.name}" in without_effect.split()
        assert f"--{setting.name} " not in main
    for command in ("call", "config", "drivers", "probe"):
        assert f"\n  {command} " in without_effect


def test_help_of_the_installed_program_imports_no_backend() -> None:
    script = """
import sys
from csi_host.cli.main import main
sys.argv = ["csi-host", "--help"]
try:
    main()
finally:
    print(sorted({"rados", "rbd", "cephfs"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("[]\n")


def test_version_names_what_the_program_stands_on_and_ends_with_0() -> None:
    done = run("--version")
    assert done.returncode == 0
    assert done.stderr == ""
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert names[:7] == ["csi-host", "Python", "grpcio", "protobuf", "pluggy", "click", "kernel"]
    assert "libcephfs" in names


def test_a_misspelt_driver_gets_the_nearest_name_and_exit_code_2() -> None:
    done = run("--driver", "rdb", "--nodeid", "a")
    assert done.returncode == 2
    assert "no driver 'rdb' is installed: did you mean 'rbd'?" in done.stderr


def test_a_misspelt_flag_gets_the_nearest_one(invoke: Invoke) -> None:
    result = invoke(["--nodeidd", "a"])
    assert result.exit_code == 2
    assert "--nodeid" in result.output.replace("--nodeidd", "")


def test_options_before_a_subcommand_are_refused_because_they_would_say_nothing_to_it(invoke: Invoke) -> None:
    result = invoke(["--endpoint=/a", "--nodeserver", "probe"])
    assert result.exit_code == 2
    assert "--endpoint, --nodeserver: give the options of 'probe' after its name" in result.output


GREETER = """
import click
from csi_host.hookspecs import hookimpl

@click.command("{name}")
def greet():
    click.echo("hello from {distribution}")

@hookimpl
def csi_host_commands():
    return [greet]
"""


@pytest.mark.parametrize("name", ["greet", "drivers"])
def test_a_plugins_command_is_added_unless_the_host_has_one_of_its_name(name: str, place: Path, invoke: Invoke) -> None:
    write_distribution(place, "csi-greet", {"greet": GREETER.format(name=name, distribution="csi-greet")})
    result = invoke([name])
    assert result.exit_code == 0
    if name == "greet":
        assert result.output == "hello from csi-greet\n"
    else:
        assert "warning: the command 'drivers' of csi-greet 1.0 is left out" in result.stderr
        assert result.stdout.startswith("DRIVER")


def test_the_drivers_are_listed_with_their_distribution_and_the_broken_with_their_cause(
    place: Path, invoke: Invoke
) -> None:
    write_distribution(place, "csi-bad", {"bad": "raise OSError('no backend')"})
    lines = invoke(["drivers"]).output.splitlines()
    assert re.split(r"\s{2,}", lines[1]) == ["toy", "csi-toy 4.5", "toy.csi.example", "A toy for tests"]
    assert lines[2] == "broken: plugin 'bad' of csi-bad 1.0 is broken: OSError: no backend"


def test_the_drivers_are_listed_for_programs_too(place: Path, invoke: Invoke) -> None:
    write_distribution(place, "csi-bad", {"bad": "raise OSError('no backend')"})
    for name in ("csi-one", "csi-two"):
        write_distribution(place, name, {"same": TWIN})
    assert json.loads(invoke(["drivers", "--output", "json"]).stdout) == {
        "drivers": [
            {
                "name": "toy",
                "summary": "A toy for tests",
                "default_driver_name": "toy.csi.example",
                "distribution": {"name": "csi-toy", "version": "4.5"},
                "options": ["mood", "loud"],
            }
        ],
        "conflicts": [
            {
                "name": "twin",
                "distributions": [{"name": "csi-one", "version": "1.0"}, {"name": "csi-two", "version": "1.0"}],
            }
        ],
        "broken": [
            {
                "entry_point": "bad",
                "distribution": {"name": "csi-bad", "version": "1.0"},
                "cause": "OSError: no backend",
            }
        ],
    }


def test_two_drivers_of_one_name_are_listed_as_a_conflict_and_not_served(place: Path, invoke: Invoke) -> None:
    for name in ("csi-one", "csi-two"):
        write_distribution(place, name, {"same": TWIN})
    message = "driver 'twin' is brought by csi-one 1.0 and csi-two 1.0: uninstall all but one"
    assert f"conflict: {message}" in invoke(["drivers"]).output
    result = invoke(["--driver=twin", "--nodeid=a"])
    assert result.exit_code == 1
    assert result.stderr == f"csi-host: {message}\n"


TWIN = """
from csi_host.driver import Driver, DriverType
from csi_host.hookspecs import hookimpl

@hookimpl
def csi_host_register_driver():
    return DriverType(name="twin", summary="", default_driver_name="twin.example", create=lambda _: Driver())
"""
