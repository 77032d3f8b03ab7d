from pathlib import Path

import pytest

from csi_host_rbd import devmanager

_TASK = "rbd.RBD().remove(ioctx, name,\n    on_progress=partial(self.progress_callback, task))\n"


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    directory = tmp_path / "installed"
    (directory / "rbd_support").mkdir(parents=True)
    (directory / "rbd_support" / "task.py").write_text(_TASK)
    (directory / "mgr_module.py").write_text("import mgr_util\n")
    (directory / "mgr_util.py").write_text("import os\nimport cephfs\n")
    return directory


def _texts(directory: Path) -> dict[str, str]:
    return {str(path.relative_to(directory)): path.read_text() for path in directory.rglob("*.py")}


def test_modules_that_work_are_used_where_they_are(installed: Path, tmp_path: Path) -> None:
    assert devmanager.modules(tmp_path / "mended", installed) == installed
    assert not (tmp_path / "mended").exists()


def test_modules_that_cannot_be_imported_are_copied_and_mended_also_over_what_was_left(
    installed: Path, tmp_path: Path
) -> None:
    (installed / "mgr_util.py").write_text("import os\n\nimport bcrypt\nimport cephfs\n")
    before = _texts(installed)
    (tmp_path / "mended" / "half").mkdir(parents=True)
    mended = devmanager.modules(tmp_path / "mended", installed)
    assert _texts(mended) == {
        "mgr_module.py": "import mgr_util\n",
        "mgr_util.py": "import os\n\nimport cephfs\n",
        "rbd_support/task.py": "rbd.RBD().remove(ioctx, name,\n    on_progress=None)\n",
    }
    assert not (mended / "half").exists()
    assert _texts(installed) == before
