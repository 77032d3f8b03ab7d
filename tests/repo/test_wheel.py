"""What users install: everything they need, and nothing of ours that they do not."""

from configparser import ConfigParser
from email import message_from_string
from pathlib import Path
from zipfile import ZipFile

import pytest

_PACKAGES = {"csi_host", "csi_host_common_node", "csi_host_rbd", "csi_host_cephfs_stub"}


@pytest.fixture(scope="module")
def wheel(host_wheel: Path) -> ZipFile:
    return ZipFile(host_wheel)


def _metadata(wheel: ZipFile, name: str) -> str:
    (path,) = (path for path in wheel.namelist() if path.endswith(f".dist-info/{name}"))
    return wheel.read(path).decode()


def test_the_wheel_has_the_four_packages_and_no_other(wheel: ZipFile) -> None:
    top = {name.partition("/")[0] for name in wheel.namelist()}
    assert {name for name in top if not name.endswith(".dist-info")} == _PACKAGES


def test_the_wheel_has_every_file_of_the_packages_and_no_tests(wheel: ZipFile, repository: Path) -> None:
    directories = [repository / "core", *(repository / "plugins").glob("*/")]
    ours = {
        str(path.relative_to(directory))
        for directory in directories
        for path in directory.glob("csi_host*/**/*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert packed == ours
    assert not [name for name in packed if "test_" in name or "conftest" in name]


@pytest.mark.parametrize("package", sorted(_PACKAGES))
def test_each_package_says_that_it_is_typed(wheel: ZipFile, package: str) -> None:
    assert f"{package}/py.typed" in wheel.namelist()


@pytest.mark.parametrize("name", ["csi.proto", "csi_pb2.py", "csi_pb2.pyi", "csi_pb2_grpc.py", "csi_pb2_grpc.pyi"])
def test_the_interface_is_in_the_wheel(wheel: ZipFile, name: str) -> None:
    assert f"csi_host/proto/{name}" in wheel.namelist()


def test_the_wheel_registers_the_program_and_the_plugins(wheel: ZipFile) -> None:
    entry_points = ConfigParser()
    entry_points.read_string(_metadata(wheel, "entry_points.txt"))
    assert dict(entry_points["console_scripts"]) == {"csi-host": "csi_host.cli.main:main"}
    assert set(entry_points["csi_host"]) == {"common_node", "rbd", "cephfs"}


def test_the_metadata_has_the_licence_and_asks_for_no_tool_of_ours(wheel: ZipFile) -> None:
    metadata = message_from_string(_metadata(wheel, "METADATA"))
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    needed = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert {line.partition(">")[0] for line in needed} == {
        "pluggy", "grpcio", "protobuf", "click", "pyyaml", "cryptography", "urllib3",
    }  # fmt: skip
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())
