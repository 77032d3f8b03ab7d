import os
import signal
import time
from pathlib import Path

import pytest
from grpc import StatusCode

from csi_host.process import REDACTED, SECRET_FILE, ProcessError, ProcessTimeout, run

SHELL = "/bin/sh"


def test_what_a_program_prints_is_returned_by_stream() -> None:
    result = run([SHELL, "-c", "echo out; echo err >&2"], timeout=10)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "out\n", "err\n")


def test_an_exit_code_that_was_asked_for_is_no_error() -> None:
    assert run([SHELL, "-c", "exit 2"], timeout=10, ok_codes=(0, 2)).exit_code == 2


def test_a_failed_program_shows_its_command_its_code_and_its_last_words() -> None:
    with pytest.raises(ProcessError, match=r"exit code 7: no such pool") as caught:
        run([SHELL, "-c", "echo no such pool >&2; exit 7"], timeout=10)
    assert caught.value.program == SHELL
    assert caught.value.exit_code == 7
    assert caught.value.stderr == "no such pool\n"
    assert not caught.value.is_missing
    assert not caught.value.timed_out


def test_a_program_that_a_signal_ended_is_said_to_be_so() -> None:
    with pytest.raises(ProcessError, match="killed by signal 9"):
        run([SHELL, "-c", "kill -KILL $$"], timeout=10)


def test_a_missing_program_is_told_from_a_failed_one() -> None:
    with pytest.raises(ProcessError, match="cannot be started") as caught:
        run(["/nonexistent/program"], timeout=10)
    assert caught.value.is_missing


def test_standard_input_is_empty_unless_text_is_given() -> None:
    assert run(["cat"], timeout=10).stdout == ""
    assert run(["cat"], timeout=10, stdin="pässwort").stdout == "pässwort"


def test_more_output_than_a_pipe_holds_is_returned_whole() -> None:
    result = run([SHELL, "-c", "head -c 3000000 /dev/zero | tr '\\0' x"], timeout=30)
    assert result.stdout == "x" * 3_000_000


def test_output_that_is_not_utf8_does_not_fail_the_call() -> None:
    assert run(["printf", r"\377ok"], timeout=10).stdout == "�ok"


def test_programs_speak_english_and_see_the_given_environment() -> None:
    result = run([SHELL, "-c", "echo $LC_ALL $EXTRA"], timeout=10, environment={"EXTRA": "value", "LC_ALL": "de_DE"})
    assert result.stdout == "C value\n"


def test_secrets_show_neither_in_the_output_nor_in_the_error() -> None:
    script = "echo key=hunter22; echo key=hunter22 >&2; exit $1"
    result = run([SHELL, "-c", script, "hunter22", "0"], timeout=10, secrets=["hunter22"])
    assert "hunter22" not in result.stdout + result.stderr
    with pytest.raises(ProcessError) as caught:
        run([SHELL, "-c", script, "hunter22", "1"], timeout=10, secrets=["hunter22"])
    assert "hunter22" not in str(caught.value) + caught.value.stderr


def test_a_secret_that_contains_another_leaves_no_tail() -> None:
    result = run(["echo", "abcdefgh"], timeout=10, secrets=["abcd", "abcdefgh"])
    assert result.stdout == "***stripped***\n"


def test_an_empty_secret_redacts_nothing() -> None:
    assert run(["echo", "plain"], timeout=10, secrets=[""]).stdout == "plain\n"


def test_a_timeout_is_not_final_and_names_the_time() -> None:
    with pytest.raises(ProcessTimeout, match=r"did not end within 0\.2 s") as caught:
        run(["sleep", "60"], timeout=0.2)
    assert caught.value.timed_out
    assert not caught.value.is_missing
    assert caught.value.code is StatusCode.DEADLINE_EXCEEDED


def test_a_timeout_kills_the_grandchildren_too(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = f"sleep 300 & echo $! > {pid_file}; wait"
    with pytest.raises(ProcessTimeout):
        run([SHELL, "-c", script], timeout=1.0)
    _wait_until_gone(int(pid_file.read_text()))


def test_a_daemon_that_keeps_the_output_open_does_not_hold_the_call(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    begun = time.monotonic()
    result = run([SHELL, "-c", f"sleep 300 & echo $! > {pid_file}; echo started"], timeout=30)
    daemon = int(pid_file.read_text())
    try:
        assert result.stdout == "started\n"
        assert time.monotonic() - begun < 20
        os.kill(daemon, 0)  # it lives on: only a timeout ends what a program leaves behind
    finally:
        os.kill(daemon, signal.SIGKILL)


def _wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.01)


def test_a_secret_file_is_read_through_its_path_and_is_on_no_command_line() -> None:
    result = run(
        ["sh", "-c", 'cat "$1" | tr A-Z a-z; tr "\\0" " " < /proc/$$/cmdline', "sh", SECRET_FILE],
        timeout=10,
        secret_file="KEY-1",
    )
    assert result.stdout.startswith("key-1sh -c")
    assert "KEY-1" not in result.stdout
    assert "/dev/fd/" in result.stdout


def test_a_secret_file_shows_neither_in_the_output_nor_in_the_error() -> None:
    with pytest.raises(ProcessError) as caught:
        run(["sh", "-c", 'cat "$1" >&2; exit 3', "sh", SECRET_FILE], timeout=10, secret_file="KEY-1")
    assert "KEY-1" not in f"{caught.value} {caught.value.stderr}"
    assert REDACTED in caught.value.stderr


def test_without_a_secret_file_nothing_is_handed_down() -> None:
    assert run(["ls", "/proc/self/fd"], timeout=10).stdout.split() == ["0", "1", "2", "3"]
