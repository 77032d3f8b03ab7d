"""``csi-host drivers``: what is installed."""

import json

import click

from csi_host.cli.tables import aligned
from csi_host.plugins import Distribution, Plugins

_TITLES = ("DRIVER", "DISTRIBUTION", "DEFAULT DRIVER NAME", "SUMMARY")
_HELP = "List the installed drivers, and the plugins that cannot be used, each with its cause."


def drivers_command(plugins: Plugins) -> click.Command:
    """Return the command."""

    @click.command("drivers", help=_HELP, short_help="List the installed drivers.")
    @click.option(
        "--output", type=click.Choice(["table", "json"]), default="table", show_default=True, help="How to print it."
    )
    def drivers(output: str) -> None:
        click.echo(_as_json(plugins) if output == "json" else _as_table(plugins))

    return drivers


def _as_table(plugins: Plugins) -> str:
    rows = [
        (name, str(distribution), driver_type.default_driver_name, driver_type.summary)
        for name, (driver_type, distribution) in plugins.drivers().items()
    ]
    lines = aligned([_TITLES, *rows])
    lines += [f"conflict: {conflict}" for conflict in plugins.conflicts.values()]
    lines += [f"broken: {broken}" for broken in plugins.broken]
    return "\n".join(lines)


def _as_json(plugins: Plugins) -> str:
    drivers = [
        {
            "name": name,
            "summary": driver_type.summary,
            "default_driver_name": driver_type.default_driver_name,
            "distribution": _as_object(distribution),
            "options": [option.name for option in driver_type.options],
        }
        for name, (driver_type, distribution) in plugins.drivers().items()
    ]
    conflicts = [
        {"name": name, "distributions": [_as_object(each) for each in conflict.distributions]}
        for name, conflict in plugins.conflicts.items()
    ]
    broken = [
        {"entry_point": each.entry_point, "distribution": _as_object(each.distribution), "cause": each.cause}
        for each in plugins.broken
    ]
    return json.dumps({"drivers": drivers, "conflicts": conflicts, "broken": broken}, indent=2)


def _as_object(distribution: Distribution) -> dict[str, str]:
    return {"name": distribution.name, "version": distribution.version}
