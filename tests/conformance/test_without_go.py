"""What a run says where csi-sanity cannot be had: with this directory's own conftest.py, in a session of its own."""

import shutil
import subprocess
import sys
from pathlib import Path

_TEST = "def test_that_needs_it(csi_sanity_binary):\n    raise AssertionError('reached')\n"


def _session_without_go(directory: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    tests = directory / "tests/conformance"
    tests.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("conftest.py"), tests)
    (tests / "test_it.py").write_text(_TEST)
    (directory / "pytest.ini").write_text("[pytest]\n")
    argv = [sys.executable, "-m", "pytest", "-ra", "-p", "no:cacheprovider", str(tests)]
    # Nothing is on this PATH, and so no Go.
    environment = {"PATH": str(directory), **variables}
    return subprocess.run(
        argv, cwd=directory, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_it_is_skipped_and_the_last_lines_say_so(tmp_path: Path) -> None:
    ended = _session_without_go(tmp_path)
    assert ended.returncode == 0, ended.stdout
    title, reason, summary = ended.stdout.splitlines()[-3:]
    assert "csi-sanity: SKIPPED" in title
    assert reason == "The conformance suite did not run: Go is not installed"
    assert "1 skipped" in summary


def test_in_ci_it_fails_instead(tmp_path: Path) -> None:
    ended = _session_without_go(tmp_path, CI="true")
    assert ended.returncode == 1, ended.stdout
    assert "csi-sanity is never skipped in CI: Go is not installed" in ended.stdout
    assert "SKIPPED" not in ended.stdout
