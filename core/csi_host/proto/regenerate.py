"""Write the generated modules beside csi.proto anew: ``python -m csi_host.proto.regenerate``.

A developer's command: grpcio-tools and mypy-protobuf come with ``pip install -e .[dev]``, pinned there, since the
generator's version is the oldest runtime that its code accepts.
"""

import sysconfig
from pathlib import Path

from grpc_tools import protoc  # type: ignore[import-untyped]  # grpcio-tools has no types

PROTO = "csi_host/proto/csi.proto"
GENERATED = tuple(f"csi_host/proto/csi_pb2{ending}" for ending in (".py", ".pyi", "_grpc.py", "_grpc.pyi"))
SOURCES = Path(__file__).parents[2]


def generate(into: Path) -> None:
    """Write the files of ``GENERATED`` below the directory ``into``; the same input gives the same bytes.

    Raises RuntimeError when the compiler refuses; what it says is on standard error.
    """
    compile_proto(
        SOURCES,
        PROTO,
        f"--python_out={into}",
        f"--grpc_python_out={into}",
        f"--mypy_out={into}",
        # The host is synchronous, and a driver may serve less than a whole service.
        f"--mypy_grpc_out=only_sync,generate_concrete_servicer_stubs:{into}",
    )


def compile_proto(root: Path, proto: str, *outputs: str) -> None:
    """Run protoc in this process on the file ``proto`` below ``root``; raise RuntimeError when it refuses."""
    # The plugins of this interpreter's environment, whatever PATH says.
    scripts = Path(sysconfig.get_path("scripts"))
    plugins = [f"--plugin=protoc-gen-{name}={scripts / f'protoc-gen-{name}'}" for name in ("mypy", "mypy_grpc")]
    exit_code = protoc.main(["protoc", f"-I{root}", f"-I{_well_known_types()}", *plugins, *outputs, proto])
    if exit_code != 0:
        raise RuntimeError(f"protoc ended with exit code {exit_code} on {proto}")


def _well_known_types() -> Path:
    return Path(protoc.__file__).parent / "_proto"


if __name__ == "__main__":
    generate(SOURCES)
    print("\n".join(GENERATED))  # noqa: T201  # the answer of a command line
