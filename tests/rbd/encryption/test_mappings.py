"""What the kernel shows of dm-crypt is arranged as files here; tests/kernel has the kernel itself."""

from collections.abc import Callable
from pathlib import Path

import pytest

from csi_host.errors import FailedPrecondition
from csi_host.kms import Passphrase
from csi_host.process import ProcessError
from csi_host.testing.runner import Answer, Command, ScriptedRunner
from csi_host_rbd.attach.attacher import DeviceInUse
from csi_host_rbd.encryption.luks import Luks, PassphraseRefused
from csi_host_rbd.encryption.mappings import Mapping, Mappings

VOLUME = "0001-0006-ceph-a-0000000000000003-2a7c9c3e-0d5f-4c0e-9a52-6f0b7a1d9e11"
NAME = f"luks-rbd-{VOLUME}"
PASSPHRASE = Passphrase("secret")


class Kernel:
    """dm-crypt's devices as /sys/block shows them, and a cryptsetup that makes and removes them."""

    def __init__(self, sys_block: Path) -> None:
        self.sys_block = sys_block
        self.runner = ScriptedRunner({"cryptsetup": self._cryptsetup})
        self.mappings = Mappings(Luks(self.runner), sys_block=sys_block)
        self.failure: Answer | None = None

    def make(self, number: int, name: str, below: str, *, read_only: bool = False, suspended: bool = False) -> None:
        entry = self.sys_block / f"dm-{number}"
        (entry / "dm").mkdir(parents=True)
        (entry / "slaves" / below).mkdir(parents=True)
        (entry / "dm/name").write_text(f"{name}\n")
        (entry / "dm/suspended").write_text(f"{suspended:d}\n")
        (entry / "ro").write_text(f"{read_only:d}\n")

    def words(self) -> list[str]:
        return [command.argv[1] for command in self.runner.ran("cryptsetup")]

    def _cryptsetup(self, command: Command) -> Answer:
        if self.failure is not None:
            return self.failure
        *_, device, name = command.argv
        if command.argv[1] == "close":
            for entry in self.sys_block.glob("dm-*"):
                if (entry / "dm/name").read_text().strip() == name:
                    entry.rename(self.sys_block / f"gone-{entry.name}")
        if command.argv[1] == "open":
            self.make(
                len(list(self.sys_block.iterdir())), name, Path(device).name, read_only="--readonly" in command.argv
            )
        return Answer()


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    return Kernel(tmp_path)


def test_a_mapping_is_found_by_its_volume_and_by_its_device(kernel: Kernel) -> None:
    kernel.make(0, "vg-root", "sda")
    kernel.make(3, NAME, "rbd7")
    (kernel.sys_block / "dm-9").mkdir()
    expected = Mapping(name=NAME, device="/dev/dm-3", below=("/dev/rbd7",), read_only=False)
    assert kernel.mappings.find(VOLUME) == kernel.mappings.at("/dev/dm-3") == expected
    assert kernel.mappings.find("another") is None
    assert kernel.mappings.at("/dev/dm-0") is None
    assert not kernel.mappings.close_at("/dev/dm-0")
    assert kernel.words() == []


def test_the_one_on_the_right_device_is_used_as_it_is(kernel: Kernel) -> None:
    kernel.make(0, NAME, "rbd7")
    assert kernel.mappings.opened(VOLUME, "/dev/rbd7", PASSPHRASE, read_only=False).device == "/dev/dm-0"
    assert kernel.words() == []


@pytest.mark.parametrize(
    "arrange",
    [
        lambda kernel: kernel.make(0, NAME, "rbd3"),
        lambda kernel: kernel.make(0, NAME, "rbd7", read_only=True),
        lambda kernel: kernel.make(0, NAME, "rbd7", suspended=True),
    ],
)
def test_any_other_is_closed_and_opened_anew(kernel: Kernel, arrange: Callable[[Kernel], None]) -> None:
    arrange(kernel)
    opened = kernel.mappings.opened(VOLUME, "/dev/rbd7", PASSPHRASE, read_only=False)
    assert (opened.below, opened.read_only, opened.is_suspended) == (("/dev/rbd7",), False, False)
    assert kernel.words() == ["close", "open"]
    (opening,) = [command for command in kernel.runner.commands if command.argv[1] == "open"]
    assert "--disable-keyring" in opening.argv
    assert opening.stdin == PASSPHRASE.reveal()
    assert opening.environment["DM_DISABLE_UDEV"] == "1"


def test_one_that_somebody_has_open_stays_and_is_an_error_that_is_asked_again(kernel: Kernel) -> None:
    kernel.make(0, NAME, "rbd3")
    kernel.failure = Answer(exit_code=5, stderr="Device is still in use.")
    with pytest.raises(DeviceInUse, match="still open"):
        kernel.mappings.opened(VOLUME, "/dev/rbd7", PASSPHRASE, read_only=False)
    with pytest.raises(DeviceInUse):
        kernel.mappings.close(VOLUME)
    kernel.failure = Answer(exit_code=1)
    with pytest.raises(ProcessError):
        kernel.mappings.close(VOLUME)
    assert kernel.mappings.find(VOLUME) is not None


def test_closing_what_is_gone_is_fine(kernel: Kernel) -> None:
    kernel.mappings.close(VOLUME)
    assert kernel.words() == []


def test_a_refused_passphrase_makes_no_mapping(kernel: Kernel) -> None:
    kernel.failure = Answer(exit_code=2)
    with pytest.raises(PassphraseRefused, match="/dev/rbd7"):
        kernel.mappings.opened(VOLUME, "/dev/rbd7", PASSPHRASE, read_only=False)
    assert kernel.mappings.find(VOLUME) is None


def test_a_mapping_that_does_not_show_up_is_an_error(kernel: Kernel) -> None:
    kernel.failure = Answer()
    with pytest.raises(FailedPrecondition, match="this machine's own"):
        kernel.mappings.opened(VOLUME, "/dev/rbd7", PASSPHRASE, read_only=False)


@pytest.mark.parametrize("volume_id", ["x" * 119, "a/b", "a b", "ünï"])
def test_an_id_that_is_no_name_of_dm_crypt_is_refused(kernel: Kernel, volume_id: str) -> None:
    with pytest.raises(FailedPrecondition, match="letters, digits"):
        kernel.mappings.opened(volume_id, "/dev/rbd7", PASSPHRASE, read_only=False)
    assert kernel.words() == []
