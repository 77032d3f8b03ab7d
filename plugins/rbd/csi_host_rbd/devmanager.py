"""The manager's Python modules, mended where a release has broken them.

The manager of Ceph 18.2 runs each module in a subinterpreter, and two things do not go with Debian 13's Python 3.13:
bcrypt cannot be imported there, and with it no module at all; and where ``rbd task`` has librbd report its progress to
Python, the manager crashes. A dev cluster needs neither passwords for a dashboard nor the progress.
"""

import shutil
from pathlib import Path

_INSTALLED = Path("/usr/share/ceph/mgr")
_BROKEN_IMPORT = "\nimport bcrypt\n"
_PROGRESS = "on_progress=partial(self.progress_callback, task)"


def modules(directory: Path, installed: Path = _INSTALLED) -> Path:
    """Return where the manager is to take its modules from: where they are installed, or a mended copy in directory."""
    util = installed / "mgr_util.py"
    if not util.is_file() or _BROKEN_IMPORT not in util.read_text(encoding="utf-8"):
        return installed
    # Also what a killed start left of one.
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(installed, directory)
    _replace(directory / "mgr_util.py", _BROKEN_IMPORT, "\n")
    _replace(directory / "rbd_support" / "task.py", _PROGRESS, "on_progress=None")
    return directory


def _replace(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
