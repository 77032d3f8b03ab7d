"""`make run`: the walk as a user starts it, and what is left of it when it ends, however it ends."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from csi_host.node.mounts import read_mounts

_REPOSITORY = Path(__file__).parents[2]
_SECONDS = 150
_RPCS = (
    "GetPluginInfo", "GetPluginCapabilities", "Probe", "NodeGetInfo", "CreateVolume", "ValidateVolumeCapabilities",
    "NodeStageVolume", "NodePublishVolume", "NodeGetVolumeStats", "ControllerExpandVolume", "NodeExpandVolume",
    "NodeUnpublishVolume", "NodeUnstageVolume", "DeleteVolume",
)  # fmt: skip

pytestmark = [pytest.mark.ceph, pytest.mark.root, pytest.mark.timeout(240)]


@pytest.fixture
def directory() -> Iterator[Path]:
    """Where the walk makes its own directory."""
    # Not pytest's own directory: its paths are longer than a socket's may be.
    with tempfile.TemporaryDirectory(prefix="csi-walk-") as path:
        yield Path(path)


class Walk:
    """A running walk, and what it prints."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.output = ""

    def read_until(self, text: str) -> None:
        """Read on until a line has the text; fails when the walk ends before."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if text in line:
                return
        pytest.fail(f"the walk ended before it said {text!r}:\n{self.output}")

    def end(self) -> int:
        """Read the rest, and return the exit code."""
        self.output += self.process.communicate(timeout=_SECONDS)[0]
        return self.process.returncode


@contextmanager
def _walking(directory: Path, *arguments: str, variables: Mapping[str, str] | None = None) -> Iterator[Walk]:
    argv = [sys.executable, "-m", "rbd_walk", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(_REPOSITORY / "examples"), "TMPDIR": str(directory)}
    with subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=_REPOSITORY,
        env={**environment, **(variables or {})},
    ) as process:
        try:
            yield Walk(process)
        finally:
            process.terminate()
            process.wait(_SECONDS)


def _left_of(directory: Path) -> list[str]:
    """Everything of the walk that is still on this machine, asked of the kernel."""
    loops = [file for file in Path("/sys/block").glob("loop*/loop/backing_file") if str(directory) in _text(file)]
    mounts = [mount.mount_point for mount in read_mounts() if str(directory) in mount.mount_point]
    return [*map(str, loops), *mounts, *_commands(directory), *(str(path) for path in directory.iterdir())]


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").replace("\0", " ")
    except OSError:
        return ""


def _printed_commands(output: str) -> list[str]:
    """The commands that the walk offers to copy, in its last section."""
    offered = output[output.index("In another terminal") :]
    return [line for line in offered.splitlines() if line.startswith(("export ", ".venv/", "/"))]


def test_the_walk_succeeds_step_by_step_and_leaves_nothing(directory: Path) -> None:
    with _walking(directory, "--once") as walk:
        assert walk.end() == 0, walk.output
    for rpc in _RPCS:
        assert re.search(rf"^ *\d+ ✓ {rpc} .* \d+\.\d ms$", walk.output, re.MULTILINE), f"{rpc}\n{walk.output}"
    assert "✗" not in walk.output
    assert "\x1b" not in walk.output, "colours are for terminals"
    assert _left_of(directory) == []


def test_ctrl_c_ends_it_well_with_a_volume_still_mounted_by_hand(directory: Path) -> None:
    with _walking(directory) as walk:
        walk.read_until("has every RPC")
        _stage_by_hand(walk.output, directory)
        walk.process.send_signal(signal.SIGINT)
        assert walk.end() == 0, walk.output
    assert _left_of(directory) == []


def _stage_by_hand(output: str, directory: Path) -> None:
    """Type what the walk offers, and then go on with the volume that was made."""
    export, _, create, *_ = _printed_commands(output)
    volume = json.loads(_shell(f"{export}; {create}"))["volume"]
    (workplace,) = directory.iterdir()
    request = {
        "volume_id": volume["volume_id"],
        "volume_context": volume["volume_context"],
        "staging_target_path": str(workplace / "by-hand"),
        "volume_capability": {"mount": {"fs_type": "xfs"}, "access_mode": {"mode": "SINGLE_NODE_WRITER"}},
    }
    (workplace / "by-hand").mkdir()
    program, secrets = shlex.split(create)[0], shlex.split(create)[-1]
    words = [program, "call", "NodeStageVolume", json.dumps(request), "--secrets", secrets]
    _shell(f"{export}; {shlex.join(words)}")
    assert any(mount.mount_point.startswith(request["staging_target_path"]) for mount in read_mounts())


def _shell(command: str) -> str:
    argv = ["bash", "-c", command]
    ended = subprocess.run(argv, cwd=_REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_a_signal_while_the_cluster_starts_leaves_nothing(directory: Path) -> None:
    with _walking(directory, "--once") as walk:
        walk.read_until("everything is below")
        _wait_until(lambda: any("ceph-mon" in command for command in _commands(directory)))
        walk.process.send_signal(signal.SIGTERM)
        assert walk.end() == 128 + signal.SIGTERM, walk.output
    assert _left_of(directory) == []


def test_a_step_that_fails_is_shown_with_the_reason_and_leaves_nothing(directory: Path, tmp_path: Path) -> None:
    program = tmp_path / "mkfs.xfs"
    program.write_text("#!/bin/sh\necho the disk is made of cheese >&2\nexit 1\n")
    program.chmod(0o755)
    with _walking(
        directory, "--once", "--filesystem=xfs", variables={"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    ) as walk:
        assert walk.end() == 1, walk.output
    assert re.search(r"^ *\d+ ✗ NodeStageVolume ", walk.output, re.MULTILINE), walk.output
    assert re.search(r"^NodeStageVolume failed: [A-Z_]+: .*the disk is made of cheese", walk.output, re.MULTILINE)
    assert "The end of csi-host's log" in walk.output
    assert _left_of(directory) == []


def test_what_a_killed_run_left_is_removed_by_the_next_one(directory: Path) -> None:
    with _walking(directory, "--once") as walk:
        walk.read_until("✓ NodePublishVolume")
        walk.process.kill()
        walk.end()
    (abandoned,) = directory.iterdir()
    assert _left_of(abandoned)
    with _walking(directory, "--once") as walk:
        walk.read_until(f"an earlier run that was killed: {abandoned}")
        walk.read_until("Everything is stopped and removed.")
        left = _left_of(abandoned) if abandoned.exists() else []
        walk.process.send_signal(signal.SIGTERM)
        walk.end()
    assert left == []
    assert _left_of(directory) == []


def _commands(directory: Path) -> list[str]:
    """The processes that have the directory in their command line."""
    commands = [_text(entry / "cmdline") for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [command for command in commands if str(directory) in command]


def _wait_until(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + _SECONDS
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_make_run_hands_its_settings_on() -> None:
    argv = ["make", "--dry-run", "--always-make", "run", "ONCE=1", "FILESYSTEM=ext4"]
    shown = subprocess.run(argv, cwd=_REPOSITORY, capture_output=True, text=True, timeout=30, check=True).stdout
    assert shlex.split(shown.partition("-m rbd_walk")[2].replace("\\\n", " ")) == ["--once", "--filesystem", "ext4"]
