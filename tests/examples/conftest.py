import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from csi_host.process import run
from csi_host.proto import csi_pb2_grpc
from csi_host.testing.host_process import HostProcess, wait_until_serving

_REPOSITORY = Path(__file__).parents[2]
_STOP_SECONDS = 30

_BROKEN_PROJECT = """
[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"
[project]
name = "csi-host-flat-battery"
version = "3.1"
[project.entry-points.csi_host]
battery = "flat_battery"
[tool.hatch.build.targets.wheel]
only-include = ["flat_battery.py"]
"""


def _build(project: Path, directory: Path) -> Path:
    run([sys.executable, "-m", "build", "--wheel", "--outdir", str(directory), str(project)], timeout=280)
    (wheel,) = directory.glob("*.whl")
    return wheel


@dataclass(frozen=True, kw_only=True)
class Installation:
    """A virtual environment as a user has it: the host's wheel and a third party's, nothing of this repository."""

    directory: Path
    environment: Mapping[str, str]

    @property
    def program(self) -> Path:
        return self.directory / "bin/csi-host"

    @property
    def python(self) -> Path:
        return self.directory / "bin/python"

    def ask(self, program: Path, *arguments: str) -> str:
        return run([str(program), *arguments], timeout=60, environment=self.environment).stdout

    @contextmanager
    def serving(self, *arguments: str) -> Iterator[str]:
        """Serve for the length of the ``with``; the endpoint, and a clean end."""
        # Not pytest's own directory: its paths are longer than a socket's may be.
        with tempfile.TemporaryDirectory(prefix="csi-") as directory:
            endpoint = f"unix://{directory}/csi.sock"
            log = Path(directory) / "log"
            process = _started([str(self.program), "--endpoint", endpoint, *arguments], log, self.environment)
            try:
                wait_until_serving(HostProcess(endpoint=endpoint, log_file=log, process=process))
                yield endpoint
            finally:
                process.terminate()
                exit_code = process.wait(_STOP_SECONDS)
            assert exit_code == 0, log.read_text()


def _started(argv: Sequence[str], log: Path, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    with log.open("wb") as output:
        return subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**os.environ, **environment}
        )


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    wheels = [
        _build(project, tmp_path_factory.mktemp("wheel"))
        for project in (_REPOSITORY, _REPOSITORY / "examples/memory_driver")
    ]
    directory = tmp_path_factory.mktemp("installation")
    # The Ceph bindings are the distribution's packages, built for its own interpreter.
    run(["/usr/bin/python3", "-m", "venv", "--system-site-packages", str(directory)], timeout=120)
    install = [str(directory / "bin/pip"), "--disable-pip-version-check", "--no-input", "install", "--quiet"]
    run([*install, *map(str, wheels)], timeout=280)
    return Installation(directory=directory, environment={})


@pytest.fixture(scope="session")
def installation_with_a_broken_plugin(
    installation: Installation, tmp_path_factory: pytest.TempPathFactory
) -> Installation:
    """The same, and beside it a third party's wheel whose plugin raises when it is imported."""
    project = tmp_path_factory.mktemp("project")
    (project / "pyproject.toml").write_text(_BROKEN_PROJECT)
    (project / "flat_battery.py").write_text('raise RuntimeError("the battery is flat")\n')
    wheel = _build(project, tmp_path_factory.mktemp("wheel"))
    directory = tmp_path_factory.mktemp("beside")
    install = [str(installation.directory / "bin/pip"), "--disable-pip-version-check", "install", "--quiet"]
    run([*install, "--no-deps", "--target", str(directory), str(wheel)], timeout=120)
    return Installation(directory=installation.directory, environment={"PYTHONPATH": str(directory)})


@dataclass(frozen=True, kw_only=True)
class MemoryHost:
    """The memory driver, served by its installed wheel."""

    controller: csi_pb2_grpc.ControllerStub
    node: csi_pb2_grpc.NodeStub
    identity: csi_pb2_grpc.IdentityStub


Serve = Callable[..., AbstractContextManager[MemoryHost]]


@pytest.fixture
def serve_memory(installation: Installation, tmp_path: Path) -> Serve:
    """What serves the memory driver with its files below ``tmp_path``, as often as one likes."""

    @contextmanager
    def serve(*arguments: str) -> Iterator[MemoryHost]:
        directory = f"--memory-directory={tmp_path / 'volumes'}"
        given = ["--driver", "memory", "--nodeid", "node-a", directory, *arguments]
        with installation.serving(*given) as endpoint, grpc.insecure_channel(endpoint) as channel:
            yield MemoryHost(
                controller=csi_pb2_grpc.ControllerStub(channel),
                node=csi_pb2_grpc.NodeStub(channel),
                identity=csi_pb2_grpc.IdentityStub(channel),
            )

    return serve
