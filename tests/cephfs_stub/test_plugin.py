import inspect
import subprocess
import sys
from pathlib import Path

from csi_host.testing.contexts import host_context
from csi_host_cephfs_stub.cephfs import library_version
from csi_host_cephfs_stub.plugin import csi_host_register_driver, csi_host_versions


def test_the_stub_brings_a_node_and_nothing_else(tmp_path: Path) -> None:
    driver = csi_host_register_driver().create(host_context(tmp_path))
    assert driver.node is not None
    assert (driver.controller, driver.group_controller, driver.snapshot_metadata) == (None, None, None)


def test_the_version_of_libcephfs_is_what_the_library_says() -> None:
    version = csi_host_versions()["libcephfs"]
    assert [part.isdecimal() for part in version.split(".")] == [True, True, True]


def test_a_machine_without_libcephfs_gets_a_text_and_no_error() -> None:
    source = Path(inspect.getfile(library_version))
    # -S leaves out the machine's packages, where the binding may be; the module is run from its file.
    script = f"import runpy; print(runpy.run_path({str(source)!r})['library_version']())"
    command = [sys.executable, "-S", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, cwd=source.parent.parent)
    assert done.stdout == "not installed (No module named 'cephfs')\n"
