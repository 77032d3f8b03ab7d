from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from csi_host.process import ProcessError, ProcessResult, ProcessTimeout, redact


@dataclass(frozen=True, kw_only=True)
class Command:
    """One program that was started."""

    argv: tuple[str, ...]
    timeout: float
    stdin: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    secret_file: str | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How a scripted program ends; ``hangs`` is what the caller's timeout is for."""

    exit_code: int = 0
    stdout: str = ""
    stderr: str = ""
    hangs: bool = False


Program = Callable[[Command], Answer]


class ScriptedRunner:
    """A Runner whose programs are Python functions; one that was not installed is missing, as on a bare machine.

    It keeps the real runner's promises: exit codes outside ``ok_codes`` and timeouts raise, secrets never show.
    """

    def __init__(self, programs: Mapping[str, Program | Answer] | None = None) -> None:
        self._programs = dict(programs or {})
        self.commands: list[Command] = []

    def install(self, name: str, program: Program | Answer) -> None:
        """Have ``program`` answer for ``name``, the last part of the path it is called by."""
        self._programs[name] = program

    def uninstall(self, name: str) -> None:
        """Have ``name`` be missing again."""
        self._programs.pop(name, None)

    def ran(self, name: str) -> list[Command]:
        """Return the commands that started the program ``name``, in order."""
        return [command for command in self.commands if Path(command.argv[0]).name == name]

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
        """Run a scripted program; raises ProcessError as the real runner does."""
        command = Command(
            argv=tuple(argv),
            timeout=timeout,
            stdin=stdin,
            environment=dict(environment or {}),
            secret_file=secret_file,
        )
        self.commands.append(command)
        secrets = (*secrets, secret_file or "")
        shown = [redact(word, secrets) for word in argv]
        program = self._programs.get(Path(argv[0]).name)
        if program is None:
            raise ProcessError(shown, "cannot be started: No such file or directory")
        answer = program if isinstance(program, Answer) else program(command)
        if answer.hangs:
            raise ProcessTimeout(shown, f"did not end within {timeout:g} s and was killed")
        stdout, stderr = redact(answer.stdout, secrets), redact(answer.stderr, secrets)
        if answer.exit_code not in ok_codes:
            why = f"exit code {answer.exit_code}: {(stderr or stdout).strip() or 'no output'}"
            raise ProcessError(shown, why, exit_code=answer.exit_code, stderr=stderr)
        return ProcessResult(exit_code=answer.exit_code, stdout=stdout, stderr=stderr)
