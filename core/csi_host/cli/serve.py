"""Serving: ``csi-host --driver NAME``."""

import logging
import sys
from collections.abc import Mapping
from contextlib import ExitStack

import click

from csi_host import __version__, logs
from csi_host.cli.failures import StartFailure, told
from csi_host.cli.flags import text_of
from csi_host.config import ConfigError, HostConfig
from csi_host.driver import Driver, DriverType, HostContext
from csi_host.errors import CsiError
from csi_host.locks import OperationLocks, SnapshotLocks, VolumeLocks
from csi_host.node.guard import GuardedStats
from csi_host.node.topology import parse_labels, segments
from csi_host.plugins import InstalledDriver, Plugins
from csi_host.process import run
from csi_host.server.diagnostics import dump_on_signal
from csi_host.server.drain import serve_until_signal
from csi_host.server.server import CsiServer

log = logging.getLogger(__name__)

# kubelet asks for the stats of each volume once a minute, with no deadline worth the name.
_STATS_SECONDS = 5.0
# How long a thread may keep the interpreter while others want it. The calls wait for their backend most of the time and
# compute for less than a millisecond in between; with Python's own 5 ms every waiting thread wakes up as often to ask
# for its turn, and with many callers that took a tenth of the processor time.
_SWITCH_SECONDS = 0.02


def resolve(plugins: Plugins, flags: Mapping[str, str], environment: Mapping[str, str]) -> HostConfig:
    """Return the settings in effect, or end the command with what is wrong with them."""
    with told():
        return HostConfig.resolve(flags, environment, lambda name: plugins.driver(name).driver_type)


def serve(plugins: Plugins, config: HostConfig) -> int:
    """Serve the configured driver until a signal comes; return the exit code."""
    logs.configure(config.log_level, sys.stderr)
    sys.setswitchinterval(_SWITCH_SECONDS)
    _log_start(plugins, config)
    with told(), ExitStack() as undo:
        installed = plugins.driver(config.driver)
        context = _context(plugins, config)
        driver = _create(installed.driver_type, context)
        undo.callback(driver.close)
        _check_serves(driver, config)
        server = _server(plugins, config, installed, context, driver)

        def begin() -> None:
            server.start()
            dump_on_signal(server.in_flight, context)
            plugins.serving(context, driver)

        return serve_until_signal(server, config.grace_period_seconds, on_stopped=undo.close, begin=begin)


def _log_start(plugins: Plugins, config: HostConfig) -> None:
    for warning in config.warnings:
        log.warning(warning)
    for broken in plugins.broken:
        log.warning(str(broken))
    for conflict in plugins.kms_types().conflicts:
        log.warning(str(conflict))
    settings = " ".join(f"{name}={text_of(each.value)!r}" for name, each in config.settled.items())
    log.info(f"csi-host {__version__} starts with {settings}")


def _context(plugins: Plugins, config: HostConfig) -> HostContext:
    labels = _node_labels(config)
    return HostContext(
        driver_name=config.driver_name,
        node_id=config.node_id,
        instance_id=config.instance_id,
        cluster_name=config.cluster_name,
        set_metadata=config.set_metadata,
        plugin_path=config.plugin_path,
        staging_path=config.staging_path,
        serves_controller=config.serves_controller,
        serves_node=config.serves_node,
        topology=_topology(config, labels),
        node_labels=labels,
        options=config.options,
        volume_locks=VolumeLocks(),
        snapshot_locks=SnapshotLocks(),
        operation_locks=OperationLocks(),
        run=run,
        volume_stats=GuardedStats(plugins.volume_stats, budget_seconds=_STATS_SECONDS),
        kms_types=plugins.kms_types(),
    )


def _node_labels(config: HostConfig) -> Mapping[str, str]:
    return {**_labels_of_file(config), **config.node_labels} if config.serves_node else {}


def _labels_of_file(config: HostConfig) -> Mapping[str, str]:
    if config.node_labels_file is None:
        return {}
    try:
        return parse_labels(config.node_labels_file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--nodelabelsfile {config.node_labels_file}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"--nodelabelsfile {config.node_labels_file}: {error}") from error


def _topology(config: HostConfig, labels: Mapping[str, str]) -> Mapping[str, str]:
    # A controller is on no node that matters: it says that there are topologies, not in which one it is.
    if not config.serves_node:
        return {}
    try:
        return segments(config.driver_name, config.domain_labels, labels)
    except ValueError as error:
        raise ConfigError(f"--domainlabels: {error}") from error


def _create(driver_type: DriverType, context: HostContext) -> Driver:
    try:
        return driver_type.create(context)
    except CsiError:
        raise
    except (Exception, SystemExit) as error:
        log.debug("driver %s cannot start", driver_type.name, exc_info=True)
        raise StartFailure(f"driver {driver_type.name!r} cannot start: {type(error).__name__}: {error}") from error


def _check_serves(driver: Driver, config: HostConfig) -> None:
    if config.serves_node and driver.node is not None:
        return
    if config.serves_controller and driver.controller is not None:
        return
    asked = "Controller" if config.serves_controller else "Node"
    raise click.UsageError(f"driver {config.driver!r} has no {asked} service, there would be nothing to serve")


def _server(
    plugins: Plugins, config: HostConfig, installed: InstalledDriver, context: HostContext, driver: Driver
) -> CsiServer:
    return CsiServer(
        driver=driver,
        driver_name=config.driver_name,
        vendor_version=installed.distribution.version,
        endpoint=config.endpoint,
        serves_controller=config.serves_controller,
        serves_node=config.serves_node,
        has_topology=bool(config.domain_labels),
        log_slow_interval=config.log_slow_interval_seconds,
        interceptors=plugins.interceptors(context),
        workers=config.workers,
    )
