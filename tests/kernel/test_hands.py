"""What runs outside of the virtual machine for those inside: the same results and the same failures."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_host.process import ProcessError, ProcessTimeout
from csi_host_vm.hands import Hands, RunOutside

pytestmark = pytest.mark.outside


@pytest.fixture
def run_outside(tmp_path: Path) -> Iterator[RunOutside]:
    with Hands(tmp_path):
        yield RunOutside(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_program_gets_its_input_and_environment_and_its_output_comes_back(run_outside: RunOutside) -> None:
    result = run_outside(
        ["sh", "-c", 'cat; echo "$WORD" >&2; exit 3'],
        timeout=20,
        ok_codes=[3],
        stdin="given",
        environment={"WORD": "hidden"},
        secrets=["hidden"],
    )
    assert (result.exit_code, result.stdout, result.stderr) == (3, "given", "***stripped***\n")


def test_a_failure_is_the_one_that_a_program_inside_would_have(run_outside: RunOutside) -> None:
    with pytest.raises(ProcessError, match="exit code 2: why") as caught:
        run_outside(["sh", "-c", "echo why >&2; exit 2"], timeout=20)
    assert (caught.value.exit_code, caught.value.stderr) == (2, "why\n")
    with pytest.raises(ProcessError) as caught:
        run_outside(["no-such-program"], timeout=20)
    assert caught.value.is_missing


def test_one_that_hangs_is_ended_and_others_are_answered_meanwhile(run_outside: RunOutside) -> None:
    with pytest.raises(ProcessTimeout):
        run_outside(["sleep", "60"], timeout=0.5)
    assert run_outside(["echo", "still here"], timeout=20).stdout == "still here\n"


def test_no_secret_is_written_to_a_file(run_outside: RunOutside) -> None:
    with pytest.raises(ValueError, match="secret"):
        run_outside(["cat"], timeout=20, secret_file="key")
