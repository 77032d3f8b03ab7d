import sys
from pathlib import Path

import pytest

from csi_host.process import ProcessError, run


def test_the_layers_hold(repository: Path) -> None:
    program = Path(sys.executable).with_name("lint-imports")
    try:
        run([str(program), "--config", str(repository / "pyproject.toml"), "--no-cache"], timeout=120)
    except ProcessError as error:
        pytest.fail(str(error))
