"""The only user of pluggy: finds plugins, keeps the broken ones apart, and calls the others with types."""

import difflib
import inspect
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import click
import grpc
import pluggy

# A plugin that ships its own csi.v1 modules must be the one that fails: ours register their symbols first.
import csi_host.proto.csi_pb2  # noqa: F401  the import itself is the effect, see above
from csi_host.driver import Driver, DriverType, HostContext
from csi_host.errors import Unimplemented
from csi_host.hookspecs import ENTRY_POINT_GROUP, HookSpecs
from csi_host.kms import KmsType, KmsTypes
from csi_host.node.stats import VolumeStats

log = logging.getLogger(__name__)

_PROJECT = "csi_host"
_HOOK_PREFIX = "csi_host_"
_MAX_CAUSE_LENGTH = 300

_T = TypeVar("_T")


class PluginError(Exception):
    """A plugin does not do what a plugin must."""


class UnknownDriver(PluginError):
    """No installed plugin brings a driver of this name."""


class PluginConflict(PluginError):
    """Two installed distributions bring a driver of one name."""

    def __init__(self, driver_name: str, distributions: Sequence["Distribution"]) -> None:
        self.driver_name = driver_name
        self.distributions = tuple(distributions)
        names = " and ".join(str(distribution) for distribution in distributions)
        super().__init__(f"driver {driver_name!r} is brought by {names}: uninstall all but one")


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """An installed distribution, as pip names it."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True, kw_only=True)
class BrokenPlugin:
    """A plugin that cannot be used, and why, in one line."""

    distribution: Distribution
    entry_point: str
    cause: str

    def __str__(self) -> str:
        return f"plugin {self.entry_point!r} of {self.distribution} is broken: {self.cause}"


class InstalledDriver(NamedTuple):
    """A driver and the distribution that brings it."""

    driver_type: DriverType
    distribution: Distribution


class InstalledCommand(NamedTuple):
    """A command below ``csi-host`` and the distribution that brings it."""

    command: click.Command
    distribution: Distribution


@dataclass(frozen=True, kw_only=True)
class _Plugin:
    """One plugin alone in a pluggy manager of its own, so that its failure is nobody else's."""

    distribution: Distribution
    entry_point: str
    module: Any
    manager: pluggy.PluginManager
    drivers: Sequence[DriverType] = field(default=())
    kms_types: Sequence[KmsType] = field(default=())

    def broken(self, error: BaseException) -> BrokenPlugin:
        return BrokenPlugin(distribution=self.distribution, entry_point=self.entry_point, cause=_one_line(error))


class Plugins:
    """The installed plugins.

    Entry points are loaded one by one; one that fails is kept in ``broken`` and stops no other.
    """

    def __init__(self, installed: Iterable[EntryPoint] | None = None) -> None:
        self._plugins: list[_Plugin] = []
        self._broken: list[BrokenPlugin] = []
        self._manager = _manager()
        found = entry_points(group=ENTRY_POINT_GROUP) if installed is None else installed
        # pluggy calls the last registered first: sorted, so that the order does not hang on sys.path.
        for entry_point in sorted(found, key=lambda each: (each.name, str(_distribution_of(each)))):
            self._load(entry_point)
        self._drivers, self._conflicts = _by_name(self._plugins)

    @property
    def broken(self) -> Sequence[BrokenPlugin]:
        """The plugins that cannot be used."""
        return tuple(self._broken)

    @property
    def conflicts(self) -> Mapping[str, PluginConflict]:
        """The driver names that more than one distribution brings; no such driver is served."""
        return MappingProxyType(self._conflicts)

    def drivers(self) -> Mapping[str, InstalledDriver]:
        """Return the drivers that can be served, by name."""
        return MappingProxyType(self._drivers)

    def driver(self, name: str) -> InstalledDriver:
        """Return the driver ``name``; raises UnknownDriver or PluginConflict."""
        if name in self._conflicts:
            raise self._conflicts[name]
        if name not in self._drivers:
            raise UnknownDriver(self._why_unknown(name))
        return self._drivers[name]

    def kms_types(self) -> KmsTypes:
        """Return the kinds of key management systems; of one name that two bring, neither can be used."""
        return KmsTypes(
            (kms_type, str(plugin.distribution)) for plugin in self._plugins for kms_type in plugin.kms_types
        )

    def volume_stats(self, volume_path: Path) -> VolumeStats:
        """Return the first plugin's answer about what is mounted at ``volume_path``; raises what the plugin raises."""
        stats: VolumeStats | None = self._manager.hook.csi_host_volume_stats(volume_path=volume_path)
        if stats is None:
            raise Unimplemented("no installed plugin can tell the usage of a volume")
        return stats

    def interceptors(self, context: HostContext) -> Sequence[grpc.ServerInterceptor]:
        """Return the plugins' interceptors; raises PluginError, as a server without one of them may be an open one."""
        found: list[grpc.ServerInterceptor] = []
        for plugin in self._plugins:
            with _named(plugin, "csi_host_interceptors"):
                for several in plugin.manager.hook.csi_host_interceptors(context=context):
                    # Only isinstance is asked of the abstract class.
                    found += [_checked(each, grpc.ServerInterceptor) for each in several]  # type: ignore[type-abstract]
        return tuple(found)

    def commands(self) -> Sequence[InstalledCommand]:
        """Return the plugins' commands; a plugin that fails to make its own is ``broken`` and gives none."""
        found: list[InstalledCommand] = []
        for plugin in tuple(self._plugins):
            try:
                several = [
                    _checked(each, click.Command) for some in plugin.manager.hook.csi_host_commands() for each in some
                ]
            except (Exception, SystemExit) as error:  # noqa: BLE001  a third party's failure of any kind is only its own
                self._set_aside(plugin.broken(error))
            else:
                found += [InstalledCommand(command, plugin.distribution) for command in several]
        return tuple(found)

    def versions(self) -> Mapping[str, str]:
        """Return the versions of the backends' libraries; loads those libraries."""
        found: dict[str, str] = {}
        for plugin in self._plugins:
            try:
                for several in plugin.manager.hook.csi_host_versions():
                    found.update(several)
            except (Exception, SystemExit) as error:  # noqa: BLE001  the rest of the report is still worth having
                found[str(plugin.distribution)] = _one_line(error)
        return found

    def serving(self, context: HostContext, driver: Driver) -> None:
        """Tell every plugin that the socket listens; what fails in one is logged, and the driver served."""
        for plugin in self._plugins:
            try:
                plugin.manager.hook.csi_host_serving(context=context, driver=driver)
            except Exception:
                log.exception("plugin %r of %s failed in csi_host_serving", plugin.entry_point, plugin.distribution)

    def _load(self, entry_point: EntryPoint) -> None:
        distribution = _distribution_of(entry_point)
        try:
            plugin = _load_alone(entry_point, distribution)
            self._manager.register(plugin.module, name=f"{distribution.name}:{entry_point.name}")
        except (Exception, SystemExit) as error:  # noqa: BLE001  a third party's failure of any kind is only its own
            self._set_aside(
                BrokenPlugin(distribution=distribution, entry_point=entry_point.name, cause=_one_line(error))
            )
        else:
            self._plugins.append(plugin)

    def _set_aside(self, broken: BrokenPlugin) -> None:
        if broken not in self._broken:
            self._broken.append(broken)

    def _why_unknown(self, name: str) -> str:
        for broken in self._broken:
            if broken.entry_point == name:
                return f"driver {name!r} is not there: {broken}"
        installed = [*self._drivers, *self._conflicts]
        names = ", ".join(sorted(installed)) or "none"
        nearest = difflib.get_close_matches(name, installed, n=1)
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        return f"no driver {name!r} is installed: {hint}Installed drivers: {names}"


def _load_alone(entry_point: EntryPoint, distribution: Distribution) -> _Plugin:
    module = entry_point.load()
    manager = _manager()
    manager.register(module, name=entry_point.name)
    _check_hooks(manager, module)
    return _Plugin(
        distribution=distribution,
        entry_point=entry_point.name,
        module=module,
        manager=manager,
        drivers=[_checked(each, DriverType) for each in manager.hook.csi_host_register_driver()],
        kms_types=[_checked(each, KmsType) for several in manager.hook.csi_host_kms_providers() for each in several],
    )


def _check_hooks(manager: pluggy.PluginManager, module: Any) -> None:
    known = [name for name in vars(HookSpecs) if name.startswith(_HOOK_PREFIX)]
    callers = manager.get_hookcallers(module) or []
    implemented = {caller.name for caller in callers}
    for caller in callers:
        if not caller.has_spec() and not all(each.optionalhook for each in caller.get_hookimpls()):
            raise PluginError(f"{caller.name!r} is no hook of csi-host{_nearest(caller.name, known)}")
    for name, function in inspect.getmembers(module, inspect.isfunction):
        own = function.__module__ == getattr(module, "__name__", None)
        if own and name.startswith(_HOOK_PREFIX) and name not in implemented:
            raise PluginError(f"{name!r} is not decorated with @hookimpl, so it would never be called")
    if not implemented:
        raise PluginError(f"it implements none of the hooks {', '.join(known)}")


def _nearest(name: str, known: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return f", the nearest one is {nearest[0]!r}"


def _manager() -> pluggy.PluginManager:
    manager = pluggy.PluginManager(_PROJECT)
    manager.add_hookspecs(HookSpecs)
    return manager


def _by_name(plugins: Iterable[_Plugin]) -> tuple[dict[str, InstalledDriver], dict[str, PluginConflict]]:
    claims: dict[str, list[InstalledDriver]] = {}
    for plugin in plugins:
        for driver_type in plugin.drivers:
            claims.setdefault(driver_type.name, []).append(InstalledDriver(driver_type, plugin.distribution))
    drivers = {name: several[0] for name, several in sorted(claims.items()) if len(several) == 1}
    conflicts = {
        name: PluginConflict(name, [each.distribution for each in several])
        for name, several in sorted(claims.items())
        if len(several) > 1
    }
    return drivers, conflicts


def _distribution_of(entry_point: EntryPoint) -> Distribution:
    found = entry_point.dist
    if found is None:
        return Distribution(name="(no distribution)", version="unknown")
    try:
        return Distribution(name=found.metadata["Name"] or "(no name)", version=found.version or "unknown")
    except Exception as error:  # noqa: BLE001  what a half-removed distribution raises differs between Pythons
        return Distribution(name=f"(unreadable distribution: {_one_line(error)})", version="unknown")


@contextmanager
def _named(plugin: _Plugin, hook: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise PluginError(
            f"plugin {plugin.entry_point!r} of {plugin.distribution} failed in {hook}: {_one_line(error)}"
        ) from error


def _checked(value: Any, kind: type[_T]) -> _T:
    if not isinstance(value, kind):
        raise PluginError(f"expected a {kind.__name__}, got {value!r}")
    return value


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:_MAX_CAUSE_LENGTH].removesuffix(": ")
