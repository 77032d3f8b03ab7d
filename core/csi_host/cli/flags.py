"""Click options made from settings, and Go's way of writing them."""

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

from csi_host.driver import DriverType
from csi_host.settings import IGNORED_FLAGS, SERVE_SETTINGS, Setting

_FLAG = re.compile(r"--?(?P<name>[A-Za-z][\w-]*)(?P<value>=.*)?", re.DOTALL)
_IGNORED_TITLE = "Accepted for ceph-csi's manifests, without effect"


class SettingOption(click.Option):
    """The flag of one setting; its value is the text, which the configuration parses for every source alike."""

    def __init__(self, setting: Setting, *, section: str = "Options", hidden: bool = False) -> None:
        self.setting = setting
        self.section = section
        super().__init__(
            [*setting.flags, _parameter_name(setting)],
            metavar="[=true|false]" if setting.is_boolean else setting.metavar,
            help=_help(setting),
            hidden=hidden,
        )


class SettingsCommand(click.Command):
    """A command whose options are settings, written as click or as Go would have them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Bring Go's spellings into click's before click looks at them."""
        options = [option for option in self.params if isinstance(option, SettingOption)]
        return super().parse_args(ctx, _in_click_spelling(args, options))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options by section, those without effect last and by name only."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for option in self.get_params(ctx):
            record = option.get_help_record(ctx)
            if record is not None:
                section = option.section if isinstance(option, SettingOption) else "Options"
                sections.setdefault(section, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)
        self._format_ignored(formatter)

    def _format_ignored(self, formatter: click.HelpFormatter) -> None:
        names = [each.opts[0] for each in self.params if isinstance(each, SettingOption) and each.hidden]
        if names:
            with formatter.section(_IGNORED_TITLE):
                width = formatter.width - formatter.current_indent
                for line in textwrap.wrap(" ".join(sorted(names)), width, break_on_hyphens=False):
                    formatter.write(f"{'':{formatter.current_indent}}{line}\n")


def serving_options(drivers: Iterable[DriverType]) -> list[click.Parameter]:
    """Return the flags of serving: the host's, every driver's own, and those without effect."""
    options = [SettingOption(setting) for setting in SERVE_SETTINGS]
    taken = {flag for option in options for flag in option.opts}
    for driver_type in drivers:
        for setting in map(Setting.of_driver, driver_type.options):
            # Two drivers may have an option of one name; which of them is meant is settled by --driver.
            if not taken.intersection(setting.flags):
                options.append(SettingOption(setting, section=f"Options of driver {driver_type.name}"))
                taken.update(setting.flags)
    options += [SettingOption(each, hidden=True) for each in IGNORED_FLAGS if not taken.intersection(each.flags)]
    return list(options)


def given_flags(ctx: click.Context) -> Mapping[str, str]:
    """Return the texts of the flags that were given, by the setting's name."""
    return {
        option.setting.name: ctx.params[option.name]
        for option in ctx.command.params
        if isinstance(option, SettingOption) and option.name and ctx.params.get(option.name) is not None
    }


def _in_click_spelling(args: Sequence[str], options: Sequence[SettingOption]) -> list[str]:
    """Return the arguments with one dash made two, and a bare boolean flag given its ``=true``."""
    booleans = {name: option.setting.is_boolean for option in options for name in option.opts}
    spelt: list[str] = []
    rest = iter(args)
    for arg in rest:
        match = _FLAG.fullmatch(arg)
        if arg == "--" or not arg.startswith("-"):
            spelt.append(arg)
            break
        if match is None or (flag := f"--{match['name']}") not in booleans:
            spelt.append(arg)
        elif match["value"] is not None:
            spelt.append(flag + match["value"])
        elif booleans[flag]:
            spelt.append(f"{flag}=true")
        else:
            spelt += [flag, *_next(rest)]
    return [*spelt, *rest]


def _next(rest: Iterable[str]) -> list[str]:
    for value in rest:
        return [value]
    return []


def _parameter_name(setting: Setting) -> str:
    return f"setting_{setting.name.replace('-', '_').lower()}"


def _help(setting: Setting) -> str:
    more = [f"also {' '.join(setting.variables[1:])}"] if setting.also_variables else []
    if setting.default not in (None, "", False):
        seconds = isinstance(setting.default, float) and setting.metavar == "DURATION"
        more.append(f"default: {text_of(setting.default)}{'s' if seconds else ''}")
    return f"{setting.help}  [{'; '.join(more)}]" if more else setting.help


def text_of(value: Any) -> str:
    """Return a setting's value as a person would write it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)
