from collections.abc import Mapping
from pathlib import Path

import pytest

from csi_host.config import ConfigError, HostConfig, Sources
from csi_host.driver import Driver, DriverOption, DriverType
from csi_host.server.endpoint import Endpoint
from csi_host.setting_values import parse_boolean, parse_driver_name
from csi_host.settings import IGNORED_FLAGS, PROBE_SETTINGS, SERVE_SETTINGS, TIMEOUT


def toy(*options: DriverOption, default_driver_name: str = "toy.csi.example") -> DriverType:
    return DriverType(
        name="toy",
        summary="for tests",
        default_driver_name=default_driver_name,
        create=lambda _context: Driver(),
        options=options,
    )


COLOUR = DriverOption(name="colour", help="its colour", default="red")
LOUD = DriverOption(name="loud", help="whether it is loud", default=False, parse=parse_boolean)
MINIMUM = {"driver": "toy", "nodeid": "node-a"}


def resolve(
    flags: Mapping[str, str] = MINIMUM,
    environment: Mapping[str, str] | None = None,
    driver_type: DriverType | None = None,
) -> HostConfig:
    chosen = driver_type or toy(COLOUR, LOUD)
    return HostConfig.resolve(flags, environment or {}, {"toy": chosen}.__getitem__)


def refusal(flags: Mapping[str, str] = MINIMUM, environment: Mapping[str, str] | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        resolve(flags, environment)
    return caught.value


@pytest.fixture
def write(tmp_path: Path) -> "Write":
    return Write(tmp_path / "host.yaml")


class Write:
    """Writes the configuration file and says how to name it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, text: str, **flags: str) -> dict[str, str]:
        self.path.write_text(text)
        return {"config": str(self.path), **flags}


def test_defaults_are_those_of_ceph_csi_and_of_the_driver() -> None:
    config = resolve()
    assert config.endpoint == Endpoint.parse("unix:///tmp/csi.sock")
    assert config.driver_name == "toy.csi.example"
    assert config.instance_id == "default"
    assert config.staging_path == Path("/var/lib/kubelet/plugins/kubernetes.io/csi")
    assert config.log_slow_interval_seconds == 30
    assert config.options == {"colour": "red", "loud": False}
    assert config.warnings == ()


def test_a_flag_goes_before_the_variable_the_variable_before_the_file_the_file_before_the_default(
    write: Write,
) -> None:
    flags = write("instanceid: from-file\nclustername: from-file\nworkers: 7\ncolour: green\n", **MINIMUM)
    environment = {"CSI_HOST_INSTANCEID": "from-environment", "CSI_HOST_CLUSTERNAME": "from-environment"}
    config = resolve({**flags, "instanceid": "from-flag"}, environment)
    assert (config.instance_id, config.cluster_name, config.workers) == ("from-flag", "from-environment", 7)
    assert config.options["colour"] == "green"
    assert config.grace_period_seconds == 25
    sources = {name: settled.source for name, settled in config.settled.items()}
    assert sources["instanceid"] == "--instanceid"
    assert sources["clustername"] == "environment variable CSI_HOST_CLUSTERNAME"
    assert sources["workers"] == f"{write.path} line 3, key workers"
    assert sources["grace-period"] == "default"


def test_everything_but_the_file_itself_can_be_said_in_the_file(write: Write) -> None:
    config = resolve(write("driver: toy\nnodeid: 007\nnodeserver: true\ngrace-period: 1m\nloud: true\n"))
    # A node id is a text: the number would have lost its noughts.
    assert config.node_id == "007"
    assert (config.serves_controller, config.serves_node) == (False, True)
    assert config.grace_period_seconds == 60
    assert config.options["loud"] is True


def test_the_file_may_be_named_by_the_environment(write: Write) -> None:
    write("instanceid: here\n")
    assert resolve(MINIMUM, {"CSI_HOST_CONFIG": str(write.path)}).instance_id == "here"


def test_a_list_in_the_file_is_the_flag_with_commas(write: Write) -> None:
    config = resolve(write("domainlabels: [a/zone, a/rack]\nnodelabelsfile: /labels\n", **MINIMUM))
    assert config.domain_labels == "a/zone,a/rack"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wrokers: 3", r"line 1, key wrokers: no such setting, did you mean 'workers'\?"),
        ("nodeid: a\ncolor: red", r"line 2, key color: no such setting, did you mean 'colour'\?"),
        ("config: other.yaml", "line 1, key config: no such setting"),
        ("workers: 3\nworkers: 4", "line 2, key workers: it was given before"),
        ("workers: [", "is no YAML"),
        ("- workers", "expected a mapping of settings"),
        ("workers:", "key workers: expected a value"),
        ("workers: {a: 1}", "key workers: expected a value"),
        ("nodeserver: yes", "line 1, key nodeserver: expected true or false"),
        ("workers: many", "line 1, key workers: expected a number from 1 to 1024, got 'many'"),
        ("logslowopinterval: -30s", "key logslowopinterval: expected a duration such as"),
    ],
)
def test_a_wrong_file_is_refused_naming_the_place(write: Write, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        resolve(write(text, **MINIMUM))
    assert str(write.path) in str(caught.value)
    assert not caught.value.is_usage


def test_a_file_that_is_not_there_is_an_error_and_never_ignored(tmp_path: Path) -> None:
    error = refusal({**MINIMUM, "config": str(tmp_path / "absent.yaml")})
    assert "absent.yaml cannot be read: No such file or directory" in str(error)


def test_an_empty_file_says_nothing(write: Write) -> None:
    assert resolve(write("# nothing yet\n", **MINIMUM)).workers == 64


def test_the_file_may_hold_what_only_the_probe_reads(write: Write) -> None:
    flags = write("timeout: 7s\n", **MINIMUM)
    assert resolve(flags).driver == "toy"
    assert Sources(flags, {}).settle(PROBE_SETTINGS)[TIMEOUT.name].value == 7


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("endpoint", "http://x", "expected unix:///path"),
        ("drivername", "rbd_csi", "expected at most 63 letters"),
        ("drivername", "a" * 64, "expected at most 63 letters"),
        ("nodeid", "n" * 257, "expected at most 256 bytes, got 257"),
        ("instanceid", "", "expected some text"),
        ("setmetadata", "on", "expected true or false"),
        ("pluginpath", "plugins", "expected an absolute path, got 'plugins'"),
        ("logslowopinterval", "-1s", "expected a duration"),
        ("loglevel", "loud", "expected one of error, warning, info, debug"),
        ("v", "high", "expected a number"),
        ("workers", "0", "expected a number from 1 to 1024"),
        ("loud", "maybe", "expected true or false"),
    ],
)
def test_a_wrong_value_is_refused_naming_where_it_was_said(name: str, text: str, message: str) -> None:
    error = refusal({**MINIMUM, name: text})
    assert str(error).startswith(f"--{name}: ")
    assert message in str(error)
    assert error.is_usage
    if text:
        variable = f"CSI_HOST_{name.upper()}"
        flags = {key: value for key, value in MINIMUM.items() if key != name}
        error = refusal(flags, {variable: text})
        assert str(error).startswith(f"environment variable {variable}: ")
        assert not error.is_usage


@pytest.mark.parametrize(
    ("environment", "field", "value"),
    [
        ({"CSI_ENDPOINT": "unix:///csi/csi.sock"}, "endpoint", Endpoint.parse("unix:///csi/csi.sock")),
        (
            {"CSI_ENDPOINT": "unix:///a", "CSI_HOST_ENDPOINT": "unix:///b"},
            "endpoint",
            Endpoint.parse("unix:///b"),
        ),
        ({"CSI_HOST_GRACE_PERIOD": "5s"}, "grace_period_seconds", 5.0),
        ({"CSI_HOST_WORKERS": ""}, "workers", 64),
    ],
)
def test_variables_of_the_manifests_are_read(environment: dict[str, str], field: str, value: object) -> None:
    assert getattr(resolve(MINIMUM, environment), field) == value


def test_the_node_id_may_come_from_the_variable_that_manifests_set() -> None:
    assert resolve({"driver": "toy"}, {"NODE_ID": "node-b"}).node_id == "node-b"


@pytest.mark.parametrize(
    ("flags", "serves"),
    [
        ({}, (True, True)),
        ({"controllerserver": "true"}, (True, False)),
        ({"nodeserver": "true"}, (False, True)),
        ({"controllerserver": "true", "nodeserver": "true"}, (True, True)),
        ({"controllerserver": "false", "nodeserver": "false"}, (True, True)),
    ],
)
def test_both_or_neither_service_means_all(flags: dict[str, str], serves: tuple[bool, bool]) -> None:
    config = resolve({**MINIMUM, **flags})
    assert (config.serves_controller, config.serves_node) == serves


def test_a_node_needs_an_id_and_a_controller_does_not() -> None:
    assert "--nodeid (or NODE_ID) is needed" in str(refusal({"driver": "toy"}))
    assert "--nodeid (or NODE_ID) is needed" in str(refusal({"driver": "toy", "nodeserver": "true"}))
    assert resolve({"driver": "toy", "controllerserver": "true"}).node_id == ""


def test_topology_needs_the_nodes_labels_where_the_node_is_served() -> None:
    assert "--domainlabels needs the node's labels" in str(refusal({**MINIMUM, "domainlabels": "a/zone"}))
    controller = resolve({"driver": "toy", "controllerserver": "true", "domainlabels": "a/zone, ,a/rack,"})
    assert controller.domain_labels == "a/zone,a/rack"
    node = resolve({**MINIMUM, "domainlabels": "a/zone", "nodelabels": "a/zone=east, a/rack=,"})
    assert node.node_labels == {"a/zone": "east"}
    assert "--nodelabels: expected name=value" in str(refusal({**MINIMUM, "nodelabels": "a/zone"}))


def test_without_a_driver_the_error_says_how_to_name_one() -> None:
    assert "give --driver NAME" in str(refusal({}))


@pytest.mark.parametrize(
    ("container", "advice"), [("liveness", "csi-host probe"), ("controller", "remove the container")]
)
def test_the_other_containers_of_a_ceph_csi_deployment_get_advice(container: str, advice: str) -> None:
    error = refusal({"driver": container})
    assert f"no driver {container!r}" in str(error)
    assert advice in str(error)


@pytest.mark.parametrize(
    ("flags", "level"),
    [({}, "info"), ({"v": "0"}, "info"), ({"v": "5"}, "debug"), ({"v": "5", "loglevel": "error"}, "error")],
)
def test_klogs_level_is_mapped_and_our_own_goes_before_it(flags: dict[str, str], level: str) -> None:
    assert resolve({**MINIMUM, **flags}).log_level == level


def test_a_drivers_own_default_name_is_checked_as_well() -> None:
    with pytest.raises(ConfigError, match="the driver's default name: expected at most 63"):
        resolve(MINIMUM, driver_type=toy(default_driver_name="not a name"))


def test_an_option_of_another_driver_is_refused() -> None:
    error = refusal({**MINIMUM, "cephconf": "/etc/ceph/ceph.conf"})
    assert str(error) == "--cephconf: the driver that is served has no such option"


def test_a_driver_that_takes_a_flag_of_the_host_is_broken() -> None:
    stolen = DriverOption(name="endpoint", help="mine now", default="")
    with pytest.raises(ConfigError, match="driver 'toy' is broken: its option 'endpoint' is the host's own"):
        resolve(MINIMUM, driver_type=toy(stolen))


def test_flags_without_effect_are_warned_about_one_by_one() -> None:
    config = resolve({**MINIMUM, "pidlimit": "-1", "enableprofiling": "true"})
    assert config.warnings == ("--pidlimit has no effect in csi-host", "--enableprofiling has no effect in csi-host")


def test_a_driver_may_give_a_meaning_to_a_flag_that_has_none_elsewhere() -> None:
    option = DriverOption(name="maxsnapshotsonimage", help="at most", default=450, parse=int)
    config = resolve({**MINIMUM, "maxsnapshotsonimage": "7"}, driver_type=toy(option))
    assert config.options == {"maxsnapshotsonimage": 7}
    assert config.warnings == ()


def test_a_variable_that_looks_misspelt_is_warned_about_and_one_of_a_kubernetes_service_is_not() -> None:
    config = resolve(
        MINIMUM, {"CSI_HOST_WORKRES": "3", "CSI_HOST_SERVICE_HOST": "10.0.0.1", "CSI_HOST_PORT": "tcp://x"}
    )
    (warning,) = config.warnings
    assert warning == "environment variable CSI_HOST_WORKRES is no setting, did you mean 'CSI_HOST_WORKERS'?"


@pytest.mark.parametrize("text", ["1", "t", "T", "true", "TRUE", "True"])
def test_gos_words_for_true(text: str) -> None:
    assert parse_boolean(text) is True


@pytest.mark.parametrize("text", ["0", "f", "F", "false", "FALSE", "False"])
def test_gos_words_for_false(text: str) -> None:
    assert parse_boolean(text) is False


@pytest.mark.parametrize("text", ["rbd.csi.ceph.com", "RBD.csi", "a", "a-b.c", "a" * 63])
def test_names_that_a_csi_driver_may_have(text: str) -> None:
    assert parse_driver_name(text) == text


@pytest.mark.parametrize("text", ["", ".a", "a.", "-a", "a..b", "a b", "a_b", "ä"])
def test_names_that_a_csi_driver_may_not_have(text: str) -> None:
    with pytest.raises(ValueError, match="expected at most 63 letters"):
        parse_driver_name(text)


def test_no_two_settings_share_a_flag_or_a_variable() -> None:
    settings = {setting.name: setting for setting in (*SERVE_SETTINGS, *PROBE_SETTINGS)}.values()
    flags = [flag for setting in settings for flag in setting.flags]
    variables = [variable for setting in settings for variable in setting.variables]
    assert len(flags) == len(set(flags))
    assert len(variables) == len(set(variables))
    ignored = {setting.name for setting in IGNORED_FLAGS}
    assert ignored.isdisjoint(setting.name for setting in SERVE_SETTINGS)
