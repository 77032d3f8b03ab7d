"""The program ``csi-host``: without a subcommand it serves."""

import os
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

import click

from csi_host.cli.call import call
from csi_host.cli.drivers import drivers_command
from csi_host.cli.flags import SettingsCommand, given_flags, serving_options
from csi_host.cli.probe import probe_command
from csi_host.cli.serve import resolve, serve
from csi_host.cli.show_config import config_command
from csi_host.cli.versions import version_report
from csi_host.plugins import Plugins

_HELP = """Serve a CSI driver, or run one of the commands below.

Every option --NAME is also the environment variable CSI_HOST_NAME and the key NAME of the --config file; the flag
goes before the variable, the variable before the file. Durations are written 90s or 1m30s.
"""


class HostGroup(SettingsCommand, click.Group):
    """``csi-host`` itself: options of serving, and subcommands."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, then the commands."""
        SettingsCommand.format_options(self, ctx, formatter)
        self.format_commands(ctx, formatter)


def make_cli(plugins: Plugins, environment: Mapping[str, str]) -> click.Group:
    """Return the program; ``environment`` is where settings are looked for after the flags."""

    @click.pass_context
    def host(ctx: click.Context, /, **_settings: str | None) -> None:
        for warning in left_out:
            click.echo(f"csi-host: warning: {warning}", err=True)
        flags = given_flags(ctx)
        if ctx.invoked_subcommand is None:
            sys.exit(serve(plugins, resolve(plugins, flags, environment)))
        if flags:
            given = ", ".join(f"--{name}" for name in flags)
            raise click.UsageError(f"{given}: give the options of {ctx.invoked_subcommand!r} after its name")

    types = [driver_type for driver_type, _ in plugins.drivers().values()]
    group = HostGroup(
        "csi-host",
        callback=host,
        params=[_version_option(plugins), *serving_options(types)],
        help=_HELP,
        invoke_without_command=True,
    )
    for command in (drivers_command(plugins), config_command(plugins, environment), probe_command(environment), call):
        group.add_command(command)
    left_out = _add_commands_of_plugins(group, plugins)
    return group


def main() -> NoReturn:
    """Run the program with the installed plugins."""
    make_cli(Plugins(), os.environ).main(prog_name="csi-host")
    raise AssertionError("click ends the process")


def _version_option(plugins: Plugins) -> click.Option:
    def show(ctx: click.Context, _option: click.Parameter, is_asked: Any) -> None:
        if is_asked:
            click.echo(version_report(plugins))
            ctx.exit()

    return click.Option(
        ["--version"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=show,
        help="Show the versions of this program and of what it stands on.",
    )


def _add_commands_of_plugins(group: click.Group, plugins: Plugins) -> list[str]:
    left_out = []
    for command, distribution in plugins.commands():
        if command.name is None or command.name in group.commands:
            left_out.append(f"the command {command.name!r} of {distribution} is left out: there is one of that name")
        else:
            group.add_command(command)
    return left_out
