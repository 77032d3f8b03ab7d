"""What can be set: one table from which the flags, the environment variables and the file keys are all made."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from csi_host.driver import DriverOption
from csi_host.durations import parse_duration
from csi_host.server.endpoint import Endpoint
from csi_host.setting_values import (
    KLOG_DEBUG,
    LOG_LEVELS,
    parse_boolean,
    parse_directory,
    parse_driver_name,
    parse_klog_level,
    parse_labels,
    parse_list,
    parse_log_level,
    parse_node_id,
    parse_timeout,
    parse_words,
    parse_workers,
)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One thing that can be set: ``--name``, ``CSI_HOST_NAME`` and the file key ``name``.

    ``parse`` turns text into the value and raises ValueError saying what was expected; ``field`` is the attribute
    of HostConfig that holds the value, empty for a driver's own option. ``also_flags`` and ``also_variables`` are
    further names that ceph-csi and its manifests use.
    """

    name: str
    help: str
    default: Any = None
    parse: Callable[[str], Any] = str
    metavar: str = "TEXT"
    field: str = ""
    also_flags: tuple[str, ...] = ()
    also_variables: tuple[str, ...] = ()

    @classmethod
    def of_driver(cls, option: DriverOption) -> Self:
        """Make the setting of a driver's own option."""
        return cls(
            name=option.name, help=option.help, default=option.default, parse=option.parse, metavar=option.metavar
        )

    @property
    def is_boolean(self) -> bool:
        """Whether the bare flag stands for ``true``."""
        return self.parse is parse_boolean

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags, the first one ours."""
        return (f"--{self.name}", *(f"--{name}" for name in self.also_flags))

    @property
    def variables(self) -> tuple[str, ...]:
        """The environment variables, the first one ours, which wins."""
        return (f"CSI_HOST_{self.name.upper().replace('-', '_')}", *self.also_variables)


CONFIG = Setting(
    name="config",
    help="A YAML file of settings; its keys are the flags' names.",
    parse=Path,
    metavar="FILE",
    field="config_file",
)
DRIVER = Setting(
    name="driver",
    help="The driver to serve, one of `csi-host drivers`.",
    metavar="NAME",
    field="driver",
    also_flags=("type",),
)
ENDPOINT = Setting(
    name="endpoint",
    help="The gRPC server's address: unix:///PATH or tcp://HOST:PORT.",
    default=Endpoint.parse("unix:///tmp/csi.sock"),
    parse=Endpoint.parse,
    metavar="URL",
    field="endpoint",
    also_variables=("CSI_ENDPOINT",),
)
TIMEOUT = Setting(
    name="timeout",
    help="How long `csi-host probe` waits for the answer.",
    default=3.0,
    parse=parse_timeout,
    metavar="DURATION",
    field="timeout_seconds",
)

# What serving reads; the file may hold TIMEOUT as well, which is another command's.
SERVE_SETTINGS: Sequence[Setting] = (
    CONFIG,
    DRIVER,
    ENDPOINT,
    Setting(
        name="drivername",
        help="What GetPluginInfo answers.  [default: the driver's own]",
        parse=parse_driver_name,
        metavar="NAME",
        field="driver_name",
    ),
    Setting(
        name="nodeid",
        help="This machine's id; needed where the Node service is served.",
        default="",
        parse=parse_node_id,
        metavar="ID",
        field="node_id",
        also_variables=("NODE_ID",),
    ),
    Setting(
        name="instanceid",
        help="Keeps apart several installations that share a backend.",
        default="default",
        parse=parse_words,
        metavar="ID",
        field="instance_id",
    ),
    Setting(
        name="controllerserver",
        help="Serve Identity and Controller; with neither this nor --nodeserver, all services.",
        default=False,
        parse=parse_boolean,
        field="controller_server",
    ),
    Setting(
        name="nodeserver",
        help="Serve Identity and Node.",
        default=False,
        parse=parse_boolean,
        field="node_server",
    ),
    Setting(
        name="pluginpath",
        help="The kubelet's plugin directory.",
        default=Path("/var/lib/kubelet/plugins"),
        parse=parse_directory,
        metavar="DIRECTORY",
        field="plugin_path",
    ),
    Setting(
        name="stagingpath",
        help="The directory below which volumes are staged.",
        default=Path("/var/lib/kubelet/plugins/kubernetes.io/csi"),
        parse=parse_directory,
        metavar="DIRECTORY",
        field="staging_path",
    ),
    Setting(
        name="clustername",
        help="The Kubernetes cluster's name, kept with each volume where --setmetadata is on.",
        default="",
        metavar="NAME",
        field="cluster_name",
    ),
    Setting(
        name="setmetadata",
        help="Keep the names of claim, volume, snapshot and cluster with the backend's objects.",
        default=False,
        parse=parse_boolean,
        field="set_metadata",
    ),
    Setting(
        name="domainlabels",
        help="Node labels to publish as topology, separated by commas.",
        default="",
        parse=parse_list,
        metavar="LABELS",
        field="domain_labels",
    ),
    Setting(
        name="nodelabelsfile",
        help="The node's labels in the downward API's format, for --domainlabels.",
        parse=parse_directory,
        metavar="FILE",
        field="node_labels_file",
    ),
    Setting(
        name="nodelabels",
        help="Labels of the node besides those of --nodelabelsfile, NAME=VALUE separated by commas.",
        default={},
        parse=parse_labels,
        metavar="LABELS",
        field="node_labels",
    ),
    Setting(
        name="logslowopinterval",
        help="How often a call past its deadline is logged, 0s for never.",
        default=30.0,
        parse=parse_duration,
        metavar="DURATION",
        field="log_slow_interval_seconds",
    ),
    Setting(
        name="loglevel",
        help=f"One of {', '.join(LOG_LEVELS)}.  [default: info]",
        parse=parse_log_level,
        metavar="LEVEL",
        field="log_level",
    ),
    Setting(
        name="v",
        help=f"klog's level: from {KLOG_DEBUG} on it means debug, below info; --loglevel goes before it.",
        parse=parse_klog_level,
        metavar="N",
        field="klog_level",
    ),
    Setting(
        name="grace-period",
        help="How long running calls may take to end after SIGTERM or SIGINT.",
        default=25.0,
        parse=parse_duration,
        metavar="DURATION",
        field="grace_period_seconds",
    ),
    Setting(
        name="workers",
        help="How many calls are worked on at once.",
        default=64,
        parse=parse_workers,
        metavar="N",
        field="workers",
    ),
)
PROBE_SETTINGS: Sequence[Setting] = (CONFIG, ENDPOINT, TIMEOUT)

# Flags that ceph-csi's manifests pass and that mean nothing here: each is accepted, with a warning at the start.
_IGNORED_BOOLEANS = (
    "enable-read-affinity",
    "enablegrpcmetrics",
    "enableprofiling",
    "forcecephkernelclient",
    "skipforceflatten",
    "add_dir_header",
    "alsologtostderr",
    "logtostderr",
    "one_output",
    "skip_headers",
    "skip_log_headers",
)
_IGNORED_VALUES = (
    "crush-location-labels",
    "csi-addons-endpoint",
    "drivernamespace",
    "fusemountoptions",
    "histogramoption",
    "kernelmountoptions",
    "maxsnapshotsonimage",
    "metricspath",
    "metricsport",
    "minsnapshotsonimage",
    "pidlimit",
    "polltime",
    "radosnamespacecephfs",
    "rbdhardmaxclonedepth",
    "rbdsoftmaxclonedepth",
    "log_backtrace_at",
    "log_dir",
    "log_file",
    "log_file_max_size",
    "stderrthreshold",
    "timeout",
    "vmodule",
)
IGNORED_FLAGS: Sequence[Setting] = (
    *(Setting(name=name, help="", parse=parse_boolean) for name in _IGNORED_BOOLEANS),
    *(Setting(name=name, help="", metavar="VALUE") for name in _IGNORED_VALUES),
)
