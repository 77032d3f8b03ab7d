import sys
from pathlib import Path

import pytest

from csi_host.process import run


@pytest.fixture(scope="session")
def repository() -> Path:
    return Path(__file__).parents[2]


@pytest.fixture(scope="session")
def host_wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The distribution as its users get it; built once a session, as it takes seconds."""
    directory = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "build", "--wheel", "--outdir", str(directory), str(repository)], timeout=280)
    (wheel,) = directory.glob("*.whl")
    return wheel
