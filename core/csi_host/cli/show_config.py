"""``csi-host config``: the settings that would be in effect, and where each comes from."""

import json
from collections.abc import Mapping

import click

from csi_host.cli.flags import SettingsCommand, given_flags, serving_options, text_of
from csi_host.cli.serve import resolve
from csi_host.cli.tables import aligned
from csi_host.plugins import Plugins

_HELP = """Check the settings and show those in effect, with where each comes from.

Takes the options of serving; the exit code is 0 when every setting is right.
"""


def config_command(plugins: Plugins, environment: Mapping[str, str]) -> click.Command:
    """Return the command; ``environment`` is where settings are looked for after the flags."""

    @click.pass_context
    def show(ctx: click.Context, /, output: str, **_settings: str | None) -> None:
        config = resolve(plugins, given_flags(ctx), environment)
        rows = [(name, text_of(each.value), each.source) for name, each in config.settled.items()]
        for warning in config.warnings:
            click.echo(f"csi-host: warning: {warning}", err=True)
        if output == "json":
            click.echo(json.dumps({name: {"value": value, "source": source} for name, value, source in rows}, indent=2))
        else:
            click.echo("\n".join(aligned([("SETTING", "VALUE", "SOURCE"), *rows])))

    choice = click.Option(
        ["--output"], type=click.Choice(["table", "json"]), default="table", show_default=True, help="How to print it."
    )
    types = [driver_type for driver_type, _ in plugins.drivers().values()]
    return SettingsCommand(
        "config",
        callback=show,
        params=[choice, *serving_options(types)],
        help=_HELP,
        short_help="Check the settings and show those in effect.",
    )
