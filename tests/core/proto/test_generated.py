from importlib.resources import files
from pathlib import Path

import pytest

from csi_host.proto import csi_pb2, csi_pb2_grpc
from csi_host.proto.regenerate import GENERATED, SOURCES, compile_proto, generate


@pytest.fixture(scope="module")
def generated_anew(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("generated")
    generate(directory)
    return directory


def test_regenerating_writes_the_four_files_and_no_other(generated_anew: Path) -> None:
    written = {str(path.relative_to(generated_anew)) for path in generated_anew.rglob("*") if path.is_file()}
    assert written == set(GENERATED)


@pytest.mark.parametrize("name", GENERATED)
def test_the_committed_code_is_what_the_generator_writes_byte_for_byte(generated_anew: Path, name: str) -> None:
    assert (generated_anew / name).read_bytes() == (SOURCES / name).read_bytes(), (
        f"{name} is stale: python -m csi_host.proto.regenerate"
    )


def test_a_proto_file_the_compiler_refuses_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "wrong.proto").write_text('syntax = "proto3"; message {', encoding="utf-8")
    with pytest.raises(RuntimeError, match=r"exit code 1 on wrong\.proto"):
        compile_proto(tmp_path, "wrong.proto", f"--python_out={tmp_path}")


def test_the_descriptor_has_the_import_packages_name_so_that_it_clashes_with_no_other_csi_proto() -> None:
    assert csi_pb2.DESCRIPTOR.name == "csi_host/proto/csi.proto"
    assert csi_pb2.DESCRIPTOR.package == "csi.v1"


def test_every_service_has_a_stub_a_servicer_and_a_way_to_register_it() -> None:
    for service in csi_pb2.DESCRIPTOR.services_by_name:
        assert hasattr(csi_pb2_grpc, f"{service}Stub")
        assert hasattr(csi_pb2_grpc, f"{service}Servicer")
        assert hasattr(csi_pb2_grpc, f"add_{service}Servicer_to_server")


def test_the_proto_file_and_the_stubs_are_installed_beside_the_code() -> None:
    for name in ("csi.proto", "csi_pb2.pyi", "csi_pb2_grpc.pyi"):
        assert files("csi_host.proto").joinpath(name).is_file()
