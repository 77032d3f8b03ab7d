import subprocess
import sys
from pathlib import Path

import pytest


def _import(preparation: str) -> str:
    program = f"import sys\n{preparation}\nimport csi_host_rbd.ceph.bindings"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    return done.stderr


@pytest.mark.parametrize("missing", ["rados", "rbd"])
def test_missing_bindings_are_named_with_their_packages(missing: str) -> None:
    message = _import(f"sys.modules[{missing!r}] = None")
    assert "install the Debian packages python3-rados and python3-rbd" in message


def test_a_directory_that_looks_like_the_bindings_is_not_taken_for_them(tmp_path: Path) -> None:
    (tmp_path / "rbd").mkdir()
    message = _import(
        # Only a namespace package: the real one is out of reach.
        f"import importlib.machinery as m, types\npackage = types.ModuleType('rbd')\n"
        f"package.__path__ = [{str(tmp_path / 'rbd')!r}]\nsys.modules['rbd'] = package"
    )
    assert "python3-rbd" in message
    assert "hides them" in message
