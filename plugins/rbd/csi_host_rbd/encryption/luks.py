"""LUKS on a device by cryptsetup(8): the header, its passphrases, and dm-crypt's devices on top.

The header is made with ceph-csi's parameters: LUKS2, SHA-256, and no more than 32 MiB for a passphrase's derivation, as
nodes with tight memory limits open it. A passphrase is given on standard input, which is a file in memory; it is
never an argument. Which passphrase is right is told by cryptsetup's exit code, never by its words.

``--disable-keyring`` keeps dm-crypt's key in the device's table and out of the kernel's keyring: it belongs to the
device then and not to the session of a process, and a device grows without its passphrase.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from csi_host.errors import FailedPrecondition
from csi_host.kms import Passphrase
from csi_host.process import SECRET_FILE, ProcessError, ProcessResult, Runner
from csi_host.request import seconds_for
from csi_host_common_node.programs import require

# Deriving a key takes seconds, on a busy node some more; half a luksFormat has to be begun anew.
_FORMAT_SECONDS = 300.0
_OPEN_SECONDS = 120.0
_CHANGE_SECONDS = 60.0
# cryptsetup(8), RETURN CODES.
_NO_SUCH_PASSPHRASE = 2
_MODULE = Path("/sys/module/dm_crypt")
_KEY_FILE = ("--key-file", "/dev/stdin")
# The time, in milliseconds, is cryptsetup's own default: deriving a key is slow so that guessing is.
_DERIVATION = ("--hash", "sha256", "--pbkdf-memory", "32768", "--iter-time", "2000")
# Waiting for udev waits for ever where udev cannot see this container's semaphores; device nodes are the kernel's own.
_ENVIRONMENT: Final[Mapping[str, str]] = {"DM_DISABLE_UDEV": "1"}


class DmCryptMissing(FailedPrecondition):
    """The kernel cannot open encrypted volumes."""


class PassphraseRefused(FailedPrecondition):
    """The passphrase that the KMS has does not open the header that the image has."""


class Luks:
    """LUKS headers and dm-crypt devices, by cryptsetup; devices are given as paths, mappings by their names."""

    def __init__(self, run: Runner, *, module: Path = _MODULE) -> None:
        self._run = run
        self._module = module

    def check(self) -> None:
        """Raise ProgramMissing naming the program and its package; touches nothing."""
        require(["cryptsetup"])

    def check_dm_crypt(self) -> None:
        """Raise FailedPrecondition when this kernel has no dm-crypt; loads the module if need be."""
        self.check()
        if self._module.exists():
            return
        try:
            self._run(["modprobe", "dm_crypt"], timeout=_CHANGE_SECONDS)
        except ProcessError as error:
            # Without modprobe it is not known: in a container the module may be built in, or come when it is asked for.
            if not error.is_missing:
                raise DmCryptMissing(
                    f"this node's kernel has no dm-crypt, which encrypted volumes need: load the module dm_crypt, or "
                    f"use 'mounter: qemu', which does without ({error})"
                ) from error

    def format(self, device: str, passphrase: Passphrase) -> None:
        """Write a new header, whatever is on the device: only for what is proven to hold no data."""
        words = ("luksFormat", "--batch-mode", "--type", "luks2", *_DERIVATION, *_KEY_FILE)
        # Not killed for an impatient caller: half a header is worse than a late one.
        seconds_for(f"encrypting {device}", at_most=_FORMAT_SECONDS)
        self._cryptsetup([*words, "--", device], passphrase, timeout=_FORMAT_SECONDS)

    def accepts(self, device: str, passphrase: Passphrase) -> bool:
        """Whether the passphrase opens the header on the device."""
        words = ("open", "--type", "luks", "--test-passphrase", *_KEY_FILE, "--", device)
        timeout = seconds_for(f"trying the passphrase of {device}", at_most=_OPEN_SECONDS)
        result = self._cryptsetup(words, passphrase, timeout=timeout, ok_codes=(0, _NO_SUCH_PASSPHRASE))
        return result.exit_code == 0

    def open(self, device: str, name: str, passphrase: Passphrase, *, read_only: bool) -> None:
        """Have dm-crypt show what is encrypted on ``device`` as the mapping ``name``; raises PassphraseRefused."""
        words = ["open", "--type", "luks", "--disable-keyring", *(["--readonly"] if read_only else []), *_KEY_FILE]
        timeout = seconds_for(f"opening {device}", at_most=_OPEN_SECONDS)
        result = self._cryptsetup(
            [*words, "--", device, name], passphrase, timeout=timeout, ok_codes=(0, _NO_SUCH_PASSPHRASE)
        )
        if result.exit_code != 0:
            raise refused(device)

    def close(self, name: str) -> None:
        """Take a mapping away; raises ProcessError, also while somebody has it open."""
        self._cryptsetup(["close", "--", name], timeout=_CHANGE_SECONDS)

    def resize(self, name: str) -> None:
        """Have a mapping show all that its device has by now."""
        self._cryptsetup(["resize", "--", name], timeout=_CHANGE_SECONDS)

    def add(self, device: str, slot: int, passphrase: Passphrase, *, authorized_by: Passphrase) -> None:
        """Have another passphrase open the header as well, from the empty slot ``slot``."""
        words = ["luksAddKey", "--batch-mode", "--key-slot", str(slot), *_DERIVATION, *_KEY_FILE]
        self._cryptsetup([*words, "--", device, SECRET_FILE], authorized_by, timeout=_OPEN_SECONDS, other=passphrase)

    def opens_slot(self, device: str, slot: int, passphrase: Passphrase) -> bool:
        """Whether the passphrase opens the header from this very slot."""
        words = ("open", "--type", "luks", "--test-passphrase", "--key-slot", str(slot), *_KEY_FILE, "--", device)
        codes = (0, 1, _NO_SUCH_PASSPHRASE)
        return self._cryptsetup(words, passphrase, timeout=_OPEN_SECONDS, ok_codes=codes).exit_code == 0

    def slots(self, device: str) -> frozenset[int]:
        """Return the slots of the header on the device that are filled."""
        shown = self._cryptsetup(["luksDump", "--dump-json-metadata", "--", device], timeout=_CHANGE_SECONDS)
        return frozenset(int(slot) for slot in json.loads(shown.stdout)["keyslots"])

    def remove(self, device: str, slot: int) -> None:
        """Empty a slot, which must not be the last one that is filled: the caller knows that another opens."""
        self._cryptsetup(["luksKillSlot", "--batch-mode", "--", device, str(slot)], timeout=_CHANGE_SECONDS)

    def _cryptsetup(
        self,
        words: Sequence[str],
        passphrase: Passphrase | None = None,
        *,
        timeout: float,
        ok_codes: Sequence[int] = (0,),
        other: Passphrase | None = None,
    ) -> ProcessResult:
        return self._run(
            ["cryptsetup", *words],
            timeout=timeout,
            ok_codes=ok_codes,
            stdin="" if passphrase is None else passphrase.reveal(),
            secrets=() if passphrase is None else (passphrase.reveal(),),
            environment=_ENVIRONMENT,
            secret_file=None if other is None else other.reveal(),
        )


def refused(what: str) -> PassphraseRefused:
    """Return the error of a header that the KMS' passphrase does not open."""
    return PassphraseRefused(
        f"{what}: its LUKS header is not opened by the passphrase that the KMS has for this volume; nothing was "
        "changed. Look whether the secrets and the KMS are the volume's (cryptsetup open --test-passphrase)"
    )


def is_busy(error: ProcessError) -> bool:
    """Whether cryptsetup failed because somebody has the device open (cryptsetup(8), RETURN CODES)."""
    return error.exit_code == 5  # noqa: PLR2004 (used once, named by this function)
