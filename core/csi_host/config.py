"""What the host was told: flag before environment variable before configuration file before default."""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml

from csi_host.driver import DriverType
from csi_host.server.endpoint import Endpoint
from csi_host.setting_values import parse_driver_name
from csi_host.settings import CONFIG, DRIVER, IGNORED_FLAGS, SERVE_SETTINGS, TIMEOUT, Setting

_PREFIX = "CSI_HOST_"
_NEARLY = 0.75
_NULL_TAG = "tag:yaml.org,2002:null"

# Containers of a ceph-csi Deployment whose --type is not a driver, and what to do about them.
_OTHER_CONTAINERS = {
    "liveness": "that container only probes: let its pod's livenessProbe run "
    "`csi-host probe --endpoint=… --timeout=3s`, and remove the container",
    "controller": "that container rebuilds ceph-csi's journal for restored claims, which csi-host does not do: "
    "remove the container",
}


class ConfigError(Exception):
    """A setting is missing or wrong; ``is_usage`` when it was a flag, which the command line's own help explains."""

    def __init__(self, message: str, *, is_usage: bool = False) -> None:
        self.is_usage = is_usage
        super().__init__(message)


@dataclass(frozen=True, kw_only=True)
class Given:
    """A setting's text and where it came from."""

    text: str
    source: str
    is_flag: bool = False

    def parsed(self, setting: Setting) -> Any:
        """Return the value; raises ConfigError naming the source."""
        try:
            return setting.parse(self.text)
        except ValueError as error:
            raise ConfigError(f"{self.source}: {error}", is_usage=self.is_flag) from None


@dataclass(frozen=True, kw_only=True)
class Settled:
    """A setting's value in effect, and where it came from."""

    value: Any
    source: str


class Sources:
    """The places where settings are looked for.

    ``flags`` are texts by the setting's name, without the dashes. Raises ConfigError when the file that they or the
    environment name cannot be read.
    """

    def __init__(self, flags: Mapping[str, str], environment: Mapping[str, str]) -> None:
        self._flags = flags
        self._environment = environment
        self._file: Mapping[str, Given] = {}
        path = self._outside_file(CONFIG)
        if path is not None:
            self._file = _read_file(Path(path.text), path)

    def given(self, setting: Setting) -> Given | None:
        """Return what was said about ``setting``, in the place that goes first; None when nothing was."""
        return self._outside_file(setting) or self._file.get(setting.name)

    def settle(self, settings: Iterable[Setting]) -> dict[str, Settled]:
        """Return the settings' values by name; raises ConfigError."""
        settled = {}
        for setting in settings:
            given = self.given(setting)
            if given is None:
                settled[setting.name] = Settled(value=setting.default, source="default")
            else:
                settled[setting.name] = Settled(value=given.parsed(setting), source=given.source)
        return settled

    def check_names(self, settings: Sequence[Setting]) -> None:
        """Raise ConfigError for a file key or a flag that is none of ``settings``."""
        known = [setting.name for setting in settings]
        # One file may serve several commands; a file that names another file would be read by none of them.
        keys = [*(name for name in known if name != CONFIG.name), TIMEOUT.name]
        for name, given in self._file.items():
            if name not in keys:
                raise ConfigError(f"{given.source}: no such setting{_did_you_mean(name, keys)}")
        for name in self._flags:
            if name not in known and name not in _IGNORED:
                raise ConfigError(f"--{name}: the driver that is served has no such option", is_usage=True)

    def warnings(self, settings: Sequence[Setting]) -> Sequence[str]:
        """Return what was said in vain: flags without effect, and variables that look misspelt."""
        known = {setting.name for setting in settings}
        in_vain = [f"--{name} has no effect in csi-host" for name in self._flags if name not in known]
        variables = [setting.variables[0] for setting in settings]
        misspelt = [
            f"environment variable {name} is no setting{hint}"
            for name in sorted(self._environment)
            # Kubernetes sets CSI_HOST_SERVICE_HOST and the like where a Service is named csi-host: only what is
            # nearly one of ours is worth a word.
            if name.startswith(_PREFIX) and name not in variables and (hint := _nearly(name, variables))
        ]
        return (*in_vain, *misspelt)

    def _outside_file(self, setting: Setting) -> Given | None:
        if setting.name in self._flags:
            return Given(text=self._flags[setting.name], source=f"--{setting.name}", is_flag=True)
        for variable in setting.variables:
            # An empty variable is how a manifest says "not set".
            if self._environment.get(variable):
                return Given(text=self._environment[variable], source=f"environment variable {variable}")
        return None


@dataclass(frozen=True, kw_only=True)
class HostConfig:
    """Everything in effect; times are in seconds.

    ``options`` are the driver's own settings by name, ``settled`` all settings by name with their sources, and
    ``warnings`` is what was said in vain.
    """

    driver: str
    endpoint: Endpoint
    driver_name: str
    node_id: str
    instance_id: str
    serves_controller: bool
    serves_node: bool
    plugin_path: Path
    staging_path: Path
    cluster_name: str
    set_metadata: bool
    domain_labels: str
    node_labels_file: Path | None
    node_labels: Mapping[str, str]
    log_slow_interval_seconds: float
    log_level: str
    grace_period_seconds: float
    workers: int
    options: Mapping[str, Any]
    settled: Mapping[str, Settled]
    warnings: Sequence[str]

    @classmethod
    def resolve(
        cls, flags: Mapping[str, str], environment: Mapping[str, str], driver_type_of: Callable[[str], DriverType]
    ) -> Self:
        """Settle every setting of the host and of the driver; raises ConfigError and what ``driver_type_of`` raises."""
        sources = Sources(flags, environment)
        driver_type = driver_type_of(_driver_name(sources))
        own = _own_settings(driver_type)
        settings = [*SERVE_SETTINGS, *own]
        sources.check_names(settings)
        settled = _with_late_defaults(sources.settle(settings), driver_type)
        _check(settled)
        return cls(
            **_fields({each.field: settled[each.name].value for each in SERVE_SETTINGS}),
            options={each.name: settled[each.name].value for each in own},
            settled=settled,
            warnings=sources.warnings(settings),
        )


_IGNORED = frozenset(setting.name for setting in IGNORED_FLAGS)


def _driver_name(sources: Sources) -> str:
    given = sources.given(DRIVER)
    if given is None:
        raise ConfigError("no driver was named: give --driver NAME, see `csi-host drivers`", is_usage=True)
    if given.text in _OTHER_CONTAINERS:
        raise ConfigError(f"{given.source}: no driver {given.text!r}: {_OTHER_CONTAINERS[given.text]}", is_usage=True)
    return given.text


def _own_settings(driver_type: DriverType) -> Sequence[Setting]:
    taken = {name for setting in SERVE_SETTINGS for name in (setting.name, *setting.also_flags)}
    own = [Setting.of_driver(option) for option in driver_type.options]
    for setting in own:
        if setting.name in taken:
            raise ConfigError(f"driver {driver_type.name!r} is broken: its option {setting.name!r} is the host's own")
        taken.add(setting.name)
    return own


def _with_late_defaults(settled: Mapping[str, Settled], driver_type: DriverType) -> dict[str, Settled]:
    late = dict(settled)
    if late["drivername"].value is None:
        late["drivername"] = Settled(value=driver_type.default_driver_name, source="default")
    if late["loglevel"].value is None:
        late["loglevel"] = Settled(value=late["v"].value or "info", source=late["v"].source)
    return late


def _fields(values: dict[str, Any]) -> dict[str, Any]:
    controller, node = values.pop("controller_server"), values.pop("node_server")
    neither = not controller and not node
    del values["config_file"], values["klog_level"]
    return {**values, "serves_controller": controller or neither, "serves_node": node or neither}


def _check(settled: Mapping[str, Settled]) -> None:
    value = {name: each.value for name, each in settled.items()}
    try:
        parse_driver_name(value["drivername"])
    except ValueError as error:
        raise ConfigError(f"the driver's default name: {error}") from None
    if value["controllerserver"] and not value["nodeserver"]:
        return
    if not value["nodeid"]:
        raise ConfigError("--nodeid (or NODE_ID) is needed where the Node service is served", is_usage=True)
    if value["domainlabels"] and value["nodelabelsfile"] is None and not value["nodelabels"]:
        raise ConfigError("--domainlabels needs the node's labels: --nodelabelsfile or --nodelabels", is_usage=True)


def _read_file(path: Path, given: Given) -> Mapping[str, Given]:
    try:
        document = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise ConfigError(f"{given.source}: {path} cannot be read: {error.strerror}", is_usage=given.is_flag) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if document is None:
        return {}
    if not isinstance(document, yaml.MappingNode):
        raise ConfigError(f"{path}: expected a mapping of settings, such as `driver: rbd`")
    found: dict[str, Given] = {}
    for key, value in document.value:
        source = f"{path} line {key.start_mark.line + 1}, key {_scalar(key, f'{path}')}"
        if key.value in found:
            raise ConfigError(f"{source}: it was given before")
        found[key.value] = Given(text=_text(value, source), source=source)
    return found


def _text(node: yaml.Node, source: str) -> str:
    """Return a value as it was written: a node id of 007 is not the number 7."""
    if isinstance(node, yaml.SequenceNode):
        return ",".join(_scalar(each, source) for each in node.value)
    return _scalar(node, source)


def _scalar(node: yaml.Node, source: str) -> str:
    if not isinstance(node, yaml.ScalarNode) or node.tag == _NULL_TAG:
        raise ConfigError(f"{source}: expected a value or a list of values")
    return str(node.value)


def _nearly(variable: str, variables: Sequence[str]) -> str:
    # Without the prefix that all of them share, which would make everything look alike.
    ours = [each.removeprefix(_PREFIX) for each in variables]
    nearest = difflib.get_close_matches(variable.removeprefix(_PREFIX), ours, n=1, cutoff=_NEARLY)
    return f", did you mean '{_PREFIX}{nearest[0]}'?" if nearest else ""


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1)
    return f", did you mean {nearest[0]!r}?" if nearest else ""
