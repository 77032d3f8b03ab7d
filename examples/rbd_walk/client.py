"""The programs the walk is made of: ``csi-host`` and Ceph's own tools, always as processes of their own."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

CSI_HOST = Path(sys.executable).with_name("csi-host")
_ENDPOINT_VARIABLE = "CSI_ENDPOINT"
_CALL_SECONDS = 60
# How much longer a command may live than the call it makes.
_EXTRA_SECONDS = 30.0
_WITH_SECRETS = frozenset(
    {
        "CreateVolume",
        "DeleteVolume",
        "ControllerExpandVolume",
        "ValidateVolumeCapabilities",
        "NodeStageVolume",
        "NodePublishVolume",
    }
)


class CommandFailed(Exception):
    """A program ended with an error or not at all; the message is what it printed."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What an RPC answered, with the spec's field names, and how long it took."""

    fields: Mapping[str, Any]
    milliseconds: float


class ServerLog:
    """csi-host's log, one JSON object a line: it knows how long a call took without the command around it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def skip(self) -> None:
        """Forget what was written up to now."""
        self._read = self._path.stat().st_size

    def seconds_of(self, rpc: str) -> float | None:
        """Return how long the last call of ``rpc`` since then took, None when the log does not say."""
        with self._path.open("rb") as file:
            file.seek(self._read)
            lines = file.read().decode(errors="replace").splitlines()
        for line in reversed(lines):
            entry = _json_map(line)
            if entry.get("rpc") == rpc and "duration_seconds" in entry:
                return float(entry["duration_seconds"])
        return None

    def tail(self, count: int) -> list[str]:
        """Return the last lines."""
        return self._path.read_text(encoding="utf-8", errors="replace").splitlines()[-count:]


def _json_map(text: str) -> Mapping[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def environment() -> dict[str, str]:
    """Return our environment without what is only ours: the examples are no import path for the programs."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run(argv: Sequence[str], *, seconds: float, variables: Mapping[str, str] | None = None) -> str:
    """Run a program, out of reach of the terminal's Ctrl-C, and return what it printed; raises CommandFailed."""
    try:
        ended = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=seconds,
            start_new_session=True, env=environment() | dict(variables or {}), check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise CommandFailed(f"{shown(argv)}\ndid not end within {seconds:g} s") from None
    except OSError as error:
        raise CommandFailed(f"{shown(argv)}\n{error}") from None
    if ended.returncode != 0:
        raise CommandFailed(f"{shown(argv)}\n{(ended.stderr + ended.stdout).strip()}\nexit code {ended.returncode}")
    return ended.stdout


def shown(argv: Sequence[str]) -> str:
    """Return a command as one would type it, a program below the current directory by its relative path."""
    program = Path(argv[0])
    if program.is_absolute() and program.is_relative_to(Path.cwd()):
        return shlex.join([str(program.relative_to(Path.cwd())), *argv[1:]])
    return shlex.join(argv)


class Client:
    """Makes calls with ``csi-host call``."""

    def __init__(self, *, endpoint: str, secrets_file: Path, log: ServerLog) -> None:
        self._endpoint = endpoint
        self._secrets_file = secrets_file
        self._log = log

    def command(self, rpc: str, request: Mapping[str, Any]) -> list[str]:
        """Return the command that makes a call."""
        secrets = ["--secrets", str(self._secrets_file)] if rpc in _WITH_SECRETS else []
        text = [json.dumps(request)] if request else []
        return [str(CSI_HOST), "call", rpc, *text, *secrets]

    def variables(self) -> Mapping[str, str]:
        """Return the environment variables that the commands need."""
        return {_ENDPOINT_VARIABLE: self._endpoint}

    def call(self, rpc: str, request: Mapping[str, Any]) -> Answer:
        """Make a call; raises CommandFailed with what the server said."""
        self._log.skip()
        began = monotonic()
        text = run(
            [*self.command(rpc, request), "--timeout", f"{_CALL_SECONDS}s"],
            seconds=_CALL_SECONDS + _EXTRA_SECONDS,
            variables=self.variables(),
        )
        took = self._log.seconds_of(rpc) or monotonic() - began
        return Answer(fields=json.loads(text), milliseconds=took * 1000)
