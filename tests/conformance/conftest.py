"""csi-sanity for a session: found or built once, and reported at the very end when it could not be."""

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from csi_host.process import run
from csi_host.testing import csi_sanity

_REPOSITORY = Path(__file__).parents[2]
_MISSING = pytest.StashKey[str]()


@pytest.fixture(scope="session")
def reports_directory() -> Path:
    return _REPOSITORY / "build/csi-sanity"


@pytest.fixture(scope="session")
def csi_sanity_binary(pytestconfig: pytest.Config) -> Path:
    try:
        return csi_sanity.install(_REPOSITORY / "build/tools")
    except csi_sanity.CsiSanityMissingError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"csi-sanity is never skipped in CI: {error}")
        pytestconfig.stash[_MISSING] = str(error)
        pytest.skip(f"csi-sanity: {error}")


@pytest.fixture(scope="session")
def with_memory_driver(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """The environment in which csi-host finds the example's driver, as a third party's distribution."""
    directory = tmp_path_factory.mktemp("memory-driver")
    install = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
    run([*install, "--target", str(directory), str(_REPOSITORY / "examples/memory_driver")], timeout=280)
    return {"PYTHONPATH": str(directory)}


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> Iterator[None]:
    # Outermost, so that it comes after the list of failures: the last lines are the ones that are read.
    yield
    if _MISSING in config.stash:
        terminalreporter.section("csi-sanity: SKIPPED", yellow=True, bold=True)
        terminalreporter.line(f"The conformance suite did not run: {config.stash[_MISSING]}", yellow=True)
