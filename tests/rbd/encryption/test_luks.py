import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from csi_host.errors import CsiError
from csi_host.kms import Passphrase
from csi_host.process import run
from csi_host.testing.runner import Answer, ScriptedRunner
from csi_host_common_node.programs import ProgramMissing
from csi_host_rbd.encryption.luks import DmCryptMissing, Luks, PassphraseRefused
from csi_host_rbd.testing.fast_luks import fast_luks

MIB = 1024**2
FIRST, SECOND, THIRD = Passphrase("first secret"), Passphrase("second, longer secret\n"), Passphrase("third")


@pytest.fixture
def luks() -> Luks:
    return Luks(fast_luks(run))


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "image"
    with path.open("wb") as file:
        file.truncate(20 * MIB)
    return str(path)


def test_only_the_right_passphrase_is_accepted_and_slots_change_hands(luks: Luks, image: str) -> None:
    luks.format(image, FIRST)
    assert luks.accepts(image, FIRST)
    assert not luks.accepts(image, SECOND)
    luks.add(image, 1, SECOND, authorized_by=FIRST)
    assert luks.opens_slot(image, 0, FIRST)
    assert luks.opens_slot(image, 1, SECOND)
    assert not luks.opens_slot(image, 1, FIRST)
    assert not luks.opens_slot(image, 2, FIRST)
    luks.remove(image, 0)
    assert not luks.accepts(image, FIRST)
    assert luks.accepts(image, SECOND)
    assert not luks.accepts(image, THIRD)


def test_no_passphrase_is_on_a_command_line_or_in_an_error(luks: Luks, image: str) -> None:
    seen: set[bytes] = set()
    is_done = threading.Event()

    def watch() -> None:
        while not is_done.is_set():
            for entry in Path("/proc").glob("[0-9]*"):
                try:
                    seen.add((entry / "cmdline").read_bytes() + (entry / "environ").read_bytes())
                except OSError:
                    continue
            time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        luks.format(image, FIRST)
        luks.accepts(image, SECOND)
        luks.add(image, 1, SECOND, authorized_by=FIRST)
        with pytest.raises(CsiError) as caught:
            luks.add(image, 1, SECOND, authorized_by=FIRST)
    finally:
        is_done.set()
        watcher.join()
    assert any(b"luksFormat" in text for text in seen)
    for secret in (FIRST.reveal(), SECOND.reveal().strip()):
        assert not any(secret.encode() in text for text in seen)
        assert secret not in str(caught.value)


def test_a_passphrase_may_have_any_characters(luks: Luks, image: str) -> None:
    odd = Passphrase("ünï\0code\n --key")
    luks.format(image, odd)
    assert luks.accepts(image, odd)


def test_a_missing_program_is_named_with_its_package(luks: Luks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ProgramMissing, match=r"cryptsetup.*cryptsetup-bin"):
        luks.check()


def test_a_kernel_without_dm_crypt_is_said_before_anything_is_touched(tmp_path: Path) -> None:
    runner = ScriptedRunner({"modprobe": Answer(exit_code=1, stderr="FATAL: Module dm_crypt not found")})
    with pytest.raises(DmCryptMissing, match="mounter: qemu"):
        Luks(runner, module=tmp_path / "dm_crypt").check_dm_crypt()
    assert [command.argv for command in runner.commands] == [("modprobe", "dm_crypt")]
    runner.install("modprobe", Answer())
    Luks(runner, module=tmp_path / "dm_crypt").check_dm_crypt()
    runner.uninstall("modprobe")
    Luks(runner, module=tmp_path / "dm_crypt").check_dm_crypt()


@pytest.mark.parametrize(
    "use",
    [
        lambda luks: luks.accepts("/dev/loop0", FIRST),
        lambda luks: luks.open("/dev/loop0", "luks-rbd-x", FIRST, read_only=False),
    ],
)
def test_a_device_that_fails_is_no_refused_passphrase(use: Callable[[Luks], object]) -> None:
    runner = ScriptedRunner({"cryptsetup": Answer(exit_code=4, stderr="Device /dev/loop0 does not exist")})
    with pytest.raises(CsiError) as caught:
        use(Luks(runner))
    assert not isinstance(caught.value, PassphraseRefused)
    assert all(command.stdin == FIRST.reveal() for command in runner.commands)
