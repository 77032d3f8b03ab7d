"""The one place that starts a program."""

import os
import select
import shlex
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import ClassVar, Protocol

from grpc import StatusCode

from csi_host.errors import Internal

REDACTED = "***stripped***"
SECRET_FILE = "{secret-file}"  # noqa: S105 (stands for a path)
_KILL_GRACE_SECONDS = 5.0
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class ProcessResult:
    """What a program that ended with exit code 0, or with one that was asked for, printed."""

    exit_code: int
    stdout: str
    stderr: str


class ProcessError(Internal):
    """A program is missing, failed, or did not end in time; the message shows the command without its secrets."""

    def __init__(
        self, argv: Sequence[str], why: str, *, exit_code: int | None = None, stderr: str = "", timed_out: bool = False
    ) -> None:
        self.program = argv[0]
        self.exit_code = exit_code
        self.stderr = stderr
        self.timed_out = timed_out
        super().__init__(f"{shlex.join(argv)}: {why}")

    @property
    def is_missing(self) -> bool:
        """Whether the program is not installed."""
        return self.exit_code is None and not self.timed_out


class ProcessTimeout(ProcessError):
    """A program was killed when its time was up; what it did until then stays, so the code is not a final one."""

    code: ClassVar[StatusCode] = StatusCode.DEADLINE_EXCEEDED

    def __init__(self, argv: Sequence[str], why: str) -> None:
        super().__init__(argv, why, timed_out=True)


class Runner(Protocol):
    """Runs programs; the tests' scripted runner is another implementation."""

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
        """Run ``argv`` to its end; see ``run``."""
        ...


def run(
    argv: Sequence[str],
    *,
    timeout: float,
    ok_codes: Sequence[int] = (0,),
    stdin: str = "",
    secrets: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    secret_file: str | None = None,
) -> ProcessResult:
    """Run a program to its end, in a session of its own, and return what it printed.

    ``timeout`` is in seconds; when it passes the whole process group is killed (killing the leader alone would leave
    grandchildren holding the device). ``stdin`` is empty unless text is given. ``secrets`` are texts that never
    appear in an error or in the captured output, nor does ``secret_file``: the text of a file that is in memory only,
    whose path takes the place of each ``SECRET_FILE`` in ``argv``. Raises ProcessError, which is a ProcessTimeout
    when time was up.
    """
    secrets = (*secrets, secret_file or "")
    shown = [redact(word, secrets) for word in argv]
    # Files in memory and not pipes: a daemon that the program leaves behind may hold its standard output for ever,
    # and the end of a pipe, unlike the end of the program, would never come.
    with (
        _memory_file(stdin) as given,
        _memory_file() as printed,
        _memory_file() as complained,
        _memory_file(secret_file or "") as secret,
    ):
        try:
            process = subprocess.Popen(
                [word.replace(SECRET_FILE, f"/dev/fd/{secret}") for word in argv],
                stdin=given,
                stdout=printed,
                stderr=complained,
                start_new_session=True,
                pass_fds=() if secret_file is None else (secret,),
                env={**os.environ, **(environment or {}), "LC_ALL": "C"},
            )
        except OSError as error:
            raise ProcessError(shown, f"cannot be started: {error.strerror}") from error
        _wait(process, shown, timeout)
        stdout, stderr = redact(_text(printed), secrets), redact(_text(complained), secrets)
    if process.returncode not in ok_codes:
        why = f"{_ending(process.returncode)}: {_last_words(stderr or stdout)}"
        raise ProcessError(shown, why, exit_code=process.returncode, stderr=stderr)
    return ProcessResult(exit_code=process.returncode, stdout=stdout, stderr=stderr)


def redact(text: str, secrets: Sequence[str]) -> str:
    """Return ``text`` without the ``secrets``; longer ones go first, as one may contain another."""
    for secret in sorted(secrets, key=len, reverse=True):
        if secret:
            text = text.replace(secret, REDACTED)
    return text


@contextmanager
def _memory_file(text: str = "") -> Iterator[int]:
    descriptor = os.memfd_create("csi-host-program")
    try:
        left = memoryview(text.encode())
        while left:
            left = left[os.write(descriptor, left) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


def _text(descriptor: int) -> str:
    chunks: list[bytes] = []
    while chunk := os.pread(descriptor, _CHUNK_BYTES, sum(map(len, chunks))):
        chunks.append(chunk)
    return b"".join(chunks).decode(errors="replace")


def _wait(process: subprocess.Popen[bytes], shown: Sequence[str], timeout: float) -> None:
    try:
        ended = _ends_within(process, timeout)
    except BaseException:
        _kill_group(process)
        raise
    if not ended:
        _kill_group(process)
        raise ProcessTimeout(shown, f"did not end within {timeout:g} s and was killed")


def _ends_within(process: subprocess.Popen[bytes], timeout: float) -> bool:
    # Popen.wait(timeout) polls, up to 50 ms late; a pidfd wakes at once. A sandbox may not have it.
    with suppress(OSError):
        descriptor = os.pidfd_open(process.pid)
        try:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            if not poll.poll(timeout * 1000):
                return False
        finally:
            os.close(descriptor)
        process.wait()
        return True
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout)
        return True
    return False


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    # The group may be gone already, or end between the timeout and here.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    # A process in uninterruptible sleep cannot be killed; it must not hold this thread as well.
    with suppress(subprocess.TimeoutExpired):
        process.wait(_KILL_GRACE_SECONDS)


def _ending(exit_code: int) -> str:
    return f"exit code {exit_code}" if exit_code >= 0 else f"killed by signal {-exit_code}"


def _last_words(text: str, limit: int = 500) -> str:
    return text.strip()[-limit:] or "no output"
