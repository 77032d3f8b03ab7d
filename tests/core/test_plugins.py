import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import click
import grpc
import pytest

from csi_host.driver import Driver
from csi_host.errors import NotFound, Unimplemented
from csi_host.kms import KmsTypeConflict
from csi_host.node.stats import VolumeStats
from csi_host.plugins import PluginConflict, PluginError, Plugins, UnknownDriver
from csi_host.testing.contexts import host_context
from csi_host.testing.distributions import entry_points_in, write_distribution

HEAD = """
from csi_host.driver import Driver, DriverType
from csi_host.hookspecs import hookimpl
"""


def driver_source(name: str) -> str:
    return f"""{HEAD}
@hookimpl
def csi_host_register_driver():
    return DriverType(
        name={name!r}, summary="a test", default_driver_name="{name}.csi.example", create=lambda _: Driver()
    )
"""


GOOD = driver_source("good")

Install = Callable[..., Plugins]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install distributions, each with one plugin source or several by entry point, and load all of them."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(**distributions: str | Mapping[str, str]) -> Plugins:
        for name, plugins in distributions.items():
            sources = {name: plugins} if isinstance(plugins, str) else plugins
            write_distribution(tmp_path, f"csi-{name}", sources, version="2.3")
        return Plugins(entry_points_in(tmp_path))

    return make


def only_cause(plugins: Plugins) -> str:
    (broken,) = plugins.broken
    return broken.cause


def test_a_driver_is_found_with_the_distribution_that_brings_it(install: Install) -> None:
    plugins = install(good=GOOD)
    driver_type, distribution = plugins.driver("good")
    assert driver_type.default_driver_name == "good.csi.example"
    assert str(distribution) == "csi-good 2.3"
    assert plugins.broken == ()


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import no_such_backend", "ModuleNotFoundError: No module named 'no_such_backend'"),
        ("import sys\nsys.exit('not on this machine')", "SystemExit: not on this machine"),
        ("raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
        ("raise RuntimeError", "RuntimeError"),
        ("x = ", "SyntaxError: invalid syntax"),
        ("import warnings\nwarnings.warn('old', DeprecationWarning)", "DeprecationWarning: old"),
        ("x = 1", "implements none of the hooks csi_host_register_driver"),
        (HEAD + "@hookimpl\ndef csi_host_register_driver(): return 'good'", "expected a DriverType, got 'good'"),
        (HEAD + "@hookimpl\ndef csi_host_register_driver(): return 1 / 0", "ZeroDivisionError"),
        (HEAD + "@hookimpl\ndef csi_host_volume_stats(path): return None", "Argument(s) {'path'} are declared"),
        (HEAD + "def csi_host_volume_stats(volume_path): return None", "is not decorated with @hookimpl"),
        (
            HEAD + "@hookimpl\ndef csi_host_register_drivr(): return None",
            "'csi_host_register_drivr' is no hook of csi-host, the nearest one is 'csi_host_register_driver'",
        ),
    ],
)
def test_a_broken_plugin_is_named_with_its_cause_and_stops_no_other(install: Install, source: str, cause: str) -> None:
    plugins = install(broken=source, good=GOOD)
    assert list(plugins.drivers()) == ["good"]
    assert cause in only_cause(plugins)
    assert "\n" not in str(plugins.broken[0])
    assert str(plugins.broken[0]).startswith("plugin 'broken' of csi-broken 2.3 is broken: ")


def test_a_plugin_that_brings_its_own_csi_messages_is_the_one_that_fails(install: Install) -> None:
    source = """
from google.protobuf import descriptor_pb2, descriptor_pool
file = descriptor_pb2.FileDescriptorProto(name="vendor/csi.proto", package="csi.v1", syntax="proto3")
file.message_type.add(name="ProbeRequest")
descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
"""
    plugins = install(vendored=source, good=GOOD)
    assert list(plugins.drivers()) == ["good"]
    assert "TypeError" in only_cause(plugins)
    assert "csi.v1.ProbeRequest" in only_cause(plugins)


def test_a_plugin_may_implement_a_hook_of_a_later_host_when_it_says_so(install: Install) -> None:
    plugins = install(good=GOOD + "@hookimpl(optionalhook=True)\ndef csi_host_of_the_future(): return 1")
    assert plugins.broken == ()


def test_one_broken_entry_point_leaves_the_other_one_of_its_distribution(install: Install) -> None:
    plugins = install(pair={"bad": "raise OSError('no')", "good": GOOD})
    assert list(plugins.drivers()) == ["good"]
    assert [broken.entry_point for broken in plugins.broken] == ["bad"]


def test_a_half_removed_distribution_stops_no_other(install: Install, tmp_path: Path) -> None:
    install(good=GOOD, gone="raise OSError('half a plugin')")
    (tmp_path / "csi_gone-2.3.dist-info" / "METADATA").unlink()
    plugins = Plugins(entry_points_in(tmp_path))
    assert list(plugins.drivers()) == ["good"]
    assert only_cause(plugins) == "OSError: half a plugin"


def test_two_drivers_of_one_name_are_refused_naming_both_distributions(install: Install) -> None:
    plugins = install(one=GOOD, other=GOOD, third=driver_source("third"))
    assert list(plugins.drivers()) == ["third"]
    with pytest.raises(PluginConflict, match=r"'good' is brought by csi-one 2\.3 and csi-other 2\.3"):
        plugins.driver("good")
    assert list(plugins.conflicts) == ["good"]


def test_a_misspelt_driver_gets_the_nearest_name_and_all_names(install: Install) -> None:
    plugins = install(good=GOOD)
    with pytest.raises(UnknownDriver, match=r"no driver 'godo' is installed: did you mean 'good'\? .*: good$"):
        plugins.driver("godo")


def test_a_driver_whose_plugin_is_broken_is_answered_with_the_cause(install: Install) -> None:
    plugins = install(bad="raise OSError('no backend')")
    with pytest.raises(
        UnknownDriver, match=r"driver 'bad' is not there: .*csi-bad 2\.3 is broken: OSError: no backend"
    ):
        plugins.driver("bad")


def test_without_any_plugin_the_error_says_that_none_is_installed() -> None:
    with pytest.raises(UnknownDriver, match="Installed drivers: none"):
        Plugins([]).driver("rbd")


STATS = """
from csi_host.errors import NotFound
from csi_host.node.stats import VolumeStats
{decorator}
def csi_host_volume_stats(volume_path):
    {body}
"""


def stats_source(body: str, *, decorator: str = "@hookimpl") -> str:
    return HEAD + STATS.format(decorator=decorator, body=body)


def test_the_first_plugin_that_knows_a_volume_answers(install: Install) -> None:
    plugins = install(
        special=stats_source("return VolumeStats(message='mine') if volume_path.name == 'mine' else None"),
        zz_shared=stats_source("return VolumeStats(message='shared')", decorator="@hookimpl(trylast=True)"),
    )
    assert plugins.volume_stats(Path("/mine")) == VolumeStats(message="mine")
    assert plugins.volume_stats(Path("/other")) == VolumeStats(message="shared")


def test_what_a_plugin_says_about_a_missing_volume_reaches_the_caller(install: Install) -> None:
    plugins = install(shared=stats_source("raise NotFound(f'nothing at {volume_path}')"))
    with pytest.raises(NotFound, match="nothing at /gone"):
        plugins.volume_stats(Path("/gone"))


def test_a_volume_that_no_plugin_can_measure_is_unimplemented(install: Install) -> None:
    with pytest.raises(Unimplemented, match="no installed plugin"):
        install(good=GOOD).volume_stats(Path("/v"))


INTERCEPTOR = """
import grpc
class Pass(grpc.ServerInterceptor):
    def intercept_service(self, continuation, details):
        return continuation(details)
@hookimpl
def csi_host_interceptors(context):
    return [Pass()]
"""


def test_interceptors_of_all_plugins_are_collected(install: Install, tmp_path: Path) -> None:
    plugins = install(one=HEAD + INTERCEPTOR, two=HEAD + INTERCEPTOR)
    found = plugins.interceptors(host_context(tmp_path))
    assert len(found) == 2
    assert all(isinstance(each, grpc.ServerInterceptor) for each in found)


def test_a_failing_interceptor_plugin_stops_the_start_and_is_named(install: Install, tmp_path: Path) -> None:
    plugins = install(auth=HEAD + "@hookimpl\ndef csi_host_interceptors(context): raise OSError('no keys')")
    with pytest.raises(PluginError, match=r"'auth' of csi-auth 2\.3 failed in csi_host_interceptors: OSError: no keys"):
        plugins.interceptors(host_context(tmp_path))


def test_commands_come_with_their_distribution_and_a_failing_plugin_gives_none(install: Install) -> None:
    command = "import click\n@hookimpl\ndef csi_host_commands(): return [click.Command('greet')]"
    plugins = install(
        greeter=HEAD + command, failing=HEAD + "@hookimpl\ndef csi_host_commands(): return ['no command']"
    )
    ((found, distribution),) = plugins.commands()
    assert isinstance(found, click.Command)
    assert (found.name, str(distribution)) == ("greet", "csi-greeter 2.3")
    assert "expected a Command, got 'no command'" in only_cause(plugins)
    plugins.commands()
    assert len(plugins.broken) == 1


def test_every_plugin_is_told_that_the_socket_listens_although_one_fails(
    install: Install, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    teller = "\n@hookimpl\ndef csi_host_serving(context, driver): (context.plugin_path / 'told').touch()"
    plugins = install(
        teller=HEAD + teller, failing=HEAD + "@hookimpl\ndef csi_host_serving(driver): raise OSError('full')"
    )
    plugins.serving(host_context(tmp_path, plugin_path=tmp_path), Driver())
    assert (tmp_path / "told").exists()
    assert "plugin 'failing' of csi-failing 2.3 failed in csi_host_serving" in caplog.text


def test_versions_of_libraries_are_collected_and_a_failure_is_shown_as_one(install: Install) -> None:
    plugins = install(
        one=HEAD + "@hookimpl\ndef csi_host_versions(): return {'libone': '1.2.3'}",
        two=HEAD + "@hookimpl\ndef csi_host_versions(): raise OSError('libtwo is gone')",
    )
    assert plugins.versions() == {"libone": "1.2.3", "csi-two 2.3": "OSError: libtwo is gone"}


def test_the_installed_plugins_and_their_commands_are_loaded_without_any_backend() -> None:
    script = """
import sys
from csi_host.plugins import Plugins
plugins = Plugins()
plugins.commands()
print(*plugins.drivers(), *({"rados", "rbd", "cephfs"} & set(sys.modules)), sep=",")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "cephfs,rbd\n"


def kms_source(*names: str) -> str:
    return f"""
from csi_host.hookspecs import hookimpl
from csi_host.kms import KmsType
@hookimpl
def csi_host_kms_providers():
    return [KmsType(name=name, summary="a test", create=lambda request: request.kms_id) for name in {names!r}]
"""


def test_kinds_of_kms_come_from_every_plugin_and_a_broken_one_stops_no_other(install: Install) -> None:
    plugins = install(
        one=kms_source("safe", "box"),
        other=kms_source("cloud"),
        broken=kms_source("bad").replace("    return [", "    1 / 0; ["),
        wrong=kms_source().replace("    return [", "    return ['no KmsType'] + ["),
        good=GOOD,
    )
    assert plugins.kms_types().names == ["box", "cloud", "safe"]
    assert [each.entry_point for each in plugins.broken] == ["broken", "wrong"]
    assert "expected a KmsType, got 'no KmsType'" in str(plugins.broken[1])
    assert list(plugins.drivers()) == ["good"]


def test_two_kinds_of_kms_of_one_name_are_refused_naming_both_distributions(install: Install) -> None:
    types = install(one=kms_source("safe"), other=kms_source("safe", "box")).kms_types()
    with pytest.raises(KmsTypeConflict, match=r"'safe' is brought by csi-one 2\.3 and csi-other 2\.3"):
        types.find("safe")
    assert types.find("box").name == "box"
