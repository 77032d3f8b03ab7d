from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from csi_host.cli.main import make_cli
from csi_host.plugins import Plugins
from csi_host.testing.distributions import entry_points_in, write_distribution

TOY = """
from csi_host.driver import Driver, DriverOption, DriverType
from csi_host.errors import Unavailable
from csi_host.hookspecs import hookimpl
from csi_host.services.controller import ControllerServer
from csi_host.services.node import NodeServer
from csi_host.setting_values import parse_boolean

CLOSED = "the toy was put away"

def create(context):
    mood = context.options["mood"]
    if mood == "away":
        raise Unavailable("the toy box is locked")
    if mood == "broken":
        raise RuntimeError("two wheels\\nare missing")
    if mood == "exits":
        raise SystemExit(9)
    servers = {"controller": ControllerServer(context)} if mood == "controller" else {"node": NodeServer(context)}
    return Driver(close=lambda: print(CLOSED, flush=True), **servers)

@hookimpl
def csi_host_register_driver():
    return DriverType(
        name="toy",
        summary="A toy for tests",
        default_driver_name="toy.csi.example",
        create=create,
        options=(
            DriverOption(name="mood", help="The toy's mood.", default="happy", metavar="MOOD"),
            DriverOption(name="loud", help="Whether it is loud.", default=False, parse=parse_boolean),
        ),
    )

@hookimpl
def csi_host_serving(context, driver):
    print("serving", context.driver_name, dict(context.topology), flush=True)
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory on the module path, with the toy driver installed."""
    directory = tmp_path / "site"
    write_distribution(directory, "csi-toy", {"toy": TOY}, version="4.5")
    monkeypatch.syspath_prepend(str(directory))
    return directory


Invoke = Callable[..., Result]


@pytest.fixture
def invoke(place: Path) -> Invoke:
    """Run ``csi-host`` in this process with what is installed in ``place``."""

    def run(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> Result:
        cli = make_cli(Plugins(entry_points_in(place)), environment or {})
        return CliRunner().invoke(cli, list(arguments), prog_name="csi-host")

    return run
