"""Programs that are run outside of the virtual machine for those inside.

A request is a file in the shared directory, and so is its answer; both appear whole, under their final names. Whoever
is inside has root's rights outside, as the tests outside have.
"""

import itertools
import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from csi_host.process import ProcessError, ProcessResult, ProcessTimeout, redact, run

_PAUSE_SECONDS = 0.02
# The outside has its own timeout, and it may be busy.
_ANSWER_SECONDS = 60.0


class RunOutside:
    """A Runner whose programs run outside."""

    def __init__(self, share: Path) -> None:
        self._share = share
        self._numbers = itertools.count()

    def __call__(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        ok_codes: Sequence[int] = (0,),
        stdin: str = "",
        secrets: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        secret_file: str | None = None,
    ) -> ProcessResult:
        """Run ``argv`` outside, as ``csi_host.process.run`` does, but without secrets: requests are files."""
        if secret_file is not None:
            raise ValueError("a secret would be written to a file in the shared directory")
        request = {
            "argv": list(argv),
            "timeout": timeout,
            "ok_codes": list(ok_codes),
            "stdin": stdin,
            "environment": dict(environment or {}),
        }
        name = f"{os.getpid()}-{next(self._numbers)}-{time.monotonic_ns()}"
        _appear(self._share / f"{name}.request", request)
        answer = self._answer(self._share / f"{name}.answer", timeout + _ANSWER_SECONDS)
        if "why" in answer:
            error = ProcessTimeout if answer["timed_out"] else ProcessError
            failure = error(list(argv), answer["why"])
            failure.exit_code, failure.stderr = answer["exit_code"], answer["stderr"]
            raise failure
        stdout, stderr = redact(answer["stdout"], secrets), redact(answer["stderr"], secrets)
        return ProcessResult(exit_code=answer["exit_code"], stdout=stdout, stderr=stderr)

    def _answer(self, path: Path, seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while not path.exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"nobody outside has answered for {seconds:g} s: {path.name}")
            time.sleep(_PAUSE_SECONDS)
        answer: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        path.unlink()
        return answer


class Hands:
    """Answers the requests that appear in a shared directory, for the length of a ``with``."""

    def __init__(self, share: Path) -> None:
        self._share = share
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="hands", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _serve(self) -> None:
        while not self._is_over.wait(_PAUSE_SECONDS):
            for path in sorted(self._share.glob("*.request")):
                request = json.loads(path.read_text(encoding="utf-8"))
                path.unlink()
                # A command that hangs, as they do while the cluster is stopped, must not be in the next one's way.
                threading.Thread(target=_answer, args=(path.with_suffix(".answer"), request), daemon=True).start()


def _answer(path: Path, request: dict[str, Any]) -> None:
    argv = request.pop("argv")
    try:
        result = run(argv, **request)
    except ProcessError as error:
        shown = str(error).partition(": ")[2]
        answer = {"why": shown, "exit_code": error.exit_code, "stderr": error.stderr, "timed_out": error.timed_out}
    else:
        answer = {"exit_code": result.exit_code, "stdout": result.stdout, "stderr": result.stderr}
    _appear(path, answer)


def _appear(path: Path, content: Mapping[str, object]) -> None:
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(content), encoding="utf-8")
    unfinished.rename(path)
