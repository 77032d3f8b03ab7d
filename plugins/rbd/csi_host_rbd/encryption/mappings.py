"""dm-crypt's devices of the volumes on this node, found by what the kernel shows of them.

The name is ceph-csi's, ``luks-rbd-<volume id>``, so that either driver finds the other's. A device ``/dev/dm-N`` is
only a number, and so is the one below it: a mapping is used only while it sits on the very device that shows the
volume's image now.

What a failure leaves, and who mends it (each by the next ``opened`` or ``close`` of the volume):

* the process dies after the mapping was made: ``find`` finds it by its name;
* the image was taken away below it and attached again as another device: it is closed, and opened anew, unless
  somebody has it mounted, which is an error that says where;
* cryptsetup is cut off: the mapping is there or it is not; one that is suspended or has no table is closed;
* somebody has it open for a moment (udev looks at new devices): cryptsetup tries for a few seconds itself, then the
  error is not final.
"""

import string
from dataclasses import dataclass
from pathlib import Path

from csi_host.errors import FailedPrecondition
from csi_host.kms import Passphrase
from csi_host.process import ProcessError
from csi_host_rbd.attach.attacher import DeviceInUse
from csi_host_rbd.attach.block_devices import refuse_mounted
from csi_host_rbd.encryption.luks import Luks, is_busy

_SYS_BLOCK = Path("/sys/block")
_PREFIX = "luks-rbd-"
# DM_NAME_LEN of the kernel, with its closing zero.
_NAME_BYTES_LIMIT = 127
# What libdevmapper writes into a name as it is.
_NAME_CHARACTERS = frozenset(string.ascii_letters + string.digits + "#+-.:=@_")


@dataclass(frozen=True, kw_only=True)
class Mapping:
    """A mapping: its device (``/dev/dm-N``), and the devices it sits on (``/dev/...``), usually one."""

    name: str
    device: str
    below: tuple[str, ...]
    read_only: bool
    is_suspended: bool = False


class Mappings:
    """The mappings of volumes, by volume id."""

    def __init__(self, luks: Luks, *, sys_block: Path = _SYS_BLOCK) -> None:
        self._luks = luks
        self._sys_block = sys_block

    def check(self, volume_id: str) -> None:
        """Raise FailedPrecondition naming what is missing for a mapping of this volume; touches nothing."""
        self._luks.check_dm_crypt()
        _name(volume_id)

    def find(self, volume_id: str) -> Mapping | None:
        """Return the volume's mapping, None when it has none."""
        name = f"{_PREFIX}{volume_id}"
        return next((mapping for mapping in self._all() if mapping.name == name), None)

    def at(self, device: str) -> Mapping | None:
        """Return the mapping of one of our volumes that a device is, None for any other device."""
        return next((mapping for mapping in self._all() if mapping.device == device), None)

    def opened(self, volume_id: str, below: str, passphrase: Passphrase, *, read_only: bool) -> Mapping:
        """Return the volume's mapping on the device ``below``, made unless it is there.

        Raises PassphraseRefused, DeviceInUse when there is one on another device that somebody uses.
        """
        existing = self.find(volume_id)
        if existing is not None:
            if existing.below == (below,) and existing.read_only == read_only and not existing.is_suspended:
                return existing
            self.close(volume_id)
        self._luks.open(below, _name(volume_id), passphrase, read_only=read_only)
        made = self.find(volume_id)
        if made is None or made.below != (below,):
            raise FailedPrecondition(
                f"{below} was opened as {_name(volume_id)}, but the kernel shows {made}: is /sys this machine's own?"
            )
        return made

    def close(self, volume_id: str) -> None:
        """Take the volume's mapping away; fine when there is none. Raises DeviceInUse when it is mounted or open."""
        mapping = self.find(volume_id)
        if mapping is not None:
            self._close(mapping)

    def close_at(self, device: str) -> bool:
        """Take the mapping at a device away; False for any other device."""
        mapping = self.at(device)
        if mapping is None:
            return False
        self._close(mapping)
        return True

    def resize(self, volume_id: str) -> None:
        """Have the volume's mapping show all that the device below it has by now."""
        self._luks.resize(_name(volume_id))

    def _close(self, mapping: Mapping) -> None:
        refuse_mounted(mapping.device)
        try:
            self._luks.close(mapping.name)
        except ProcessError as error:
            if not any(each.name == mapping.name for each in self._all()):
                return
            if is_busy(error):
                raise DeviceInUse(f"{mapping.device} ({mapping.name}) is still open somewhere: {error}") from error
            raise

    def _all(self) -> list[Mapping]:
        found = (_read(entry) for entry in sorted(self._sys_block.glob("dm-*")))
        return [mapping for mapping in found if mapping is not None]


def _read(entry: Path) -> Mapping | None:
    try:
        name = (entry / "dm/name").read_text().strip()
        if not name.startswith(_PREFIX):
            return None
        return Mapping(
            name=name,
            device=f"/dev/{entry.name}",
            below=tuple(f"/dev/{slave.name}" for slave in sorted((entry / "slaves").iterdir())),
            read_only=(entry / "ro").read_text().strip() == "1",
            is_suspended=(entry / "dm/suspended").read_text().strip() == "1",
        )
    except OSError:
        # It went while it was looked at.
        return None


def _name(volume_id: str) -> str:
    name = f"{_PREFIX}{volume_id}"
    if len(name) > _NAME_BYTES_LIMIT or not set(name) <= _NAME_CHARACTERS:
        raise FailedPrecondition(
            f"volume_id: {volume_id!r} cannot be the name of an encrypted volume: a name of dm-crypt has at most "
            f"{_NAME_BYTES_LIMIT} characters, {_PREFIX} among them, of letters, digits and #+-.:=@_"
        )
    return name
