import pytest

from csi_host.process import SECRET_FILE, ProcessError, ProcessTimeout
from csi_host.testing.runner import Answer, Command, ScriptedRunner


def test_a_program_that_was_not_installed_is_missing() -> None:
    with pytest.raises(ProcessError, match=r"mkfs\.ext4 /dev/x: cannot be started") as caught:
        ScriptedRunner()(["mkfs.ext4", "/dev/x"], timeout=1)
    assert caught.value.is_missing


def test_a_program_answers_by_what_it_was_asked() -> None:
    def blkid(command: Command) -> Answer:
        return Answer(stdout="TYPE=xfs") if command.argv[-1] == "/dev/full" else Answer(exit_code=2)

    run = ScriptedRunner({"blkid": blkid})
    assert run(["/sbin/blkid", "/dev/full"], timeout=1).stdout == "TYPE=xfs"
    assert run(["blkid", "/dev/blank"], timeout=1, ok_codes=(0, 2)).exit_code == 2
    with pytest.raises(ProcessError, match="exit code 2: no output"):
        run(["blkid", "/dev/blank"], timeout=1)


def test_what_was_run_is_kept_in_order() -> None:
    run = ScriptedRunner({"a": Answer(), "b": Answer()})
    run(["a", "1"], timeout=5, stdin="text", environment={"K": "V"})
    run(["b"], timeout=6)
    run(["/bin/a", "2"], timeout=7)
    assert run.ran("a") == [
        Command(argv=("a", "1"), timeout=5, stdin="text", environment={"K": "V"}),
        Command(argv=("/bin/a", "2"), timeout=7),
    ]


def test_a_program_can_hang_and_be_uninstalled() -> None:
    run = ScriptedRunner()
    run.install("rbd", Answer(hangs=True))
    with pytest.raises(ProcessTimeout, match="did not end within 3 s"):
        run(["rbd", "map"], timeout=3)
    run.uninstall("rbd")
    with pytest.raises(ProcessError) as caught:
        run(["rbd", "map"], timeout=3)
    assert caught.value.is_missing


def test_secrets_are_kept_out_as_by_the_real_runner() -> None:
    run = ScriptedRunner({"rbd": Answer(exit_code=1, stderr="bad key hunter22")})
    with pytest.raises(ProcessError) as caught:
        run(["rbd", "--key=hunter22"], timeout=1, secrets=["hunter22"])
    assert "hunter22" not in str(caught.value) + caught.value.stderr


def test_a_secret_file_is_kept_for_looking_at_and_out_of_errors() -> None:
    run = ScriptedRunner({"rbd": Answer(exit_code=1, stderr="bad key hunter22")})
    with pytest.raises(ProcessError) as caught:
        run(["rbd", "--keyfile", SECRET_FILE], timeout=1, secret_file="hunter22")
    assert "hunter22" not in str(caught.value) + caught.value.stderr + repr(run.commands)
    assert run.ran("rbd")[0].secret_file == "hunter22"
