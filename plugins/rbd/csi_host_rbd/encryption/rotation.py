"""Another passphrase for an encrypted volume, in ceph-csi's order, while the volume is used or not.

The key that encrypts the data stays; what changes is the passphrase that opens the header's copy of it. Two of the
header's slots are used: 0, and 1 for as long as it takes. Whatever is cut off in between, the passphrase that the KMS
has opens the header, from slot 0 or from slot 1:

| step | slot 0 | slot 1 | the KMS has |
|---|---|---|---|
| before | old | empty, or what a cut-off change left | old |
| the old one also into slot 1 | old | old | old |
| slot 0 emptied, and filled with the new one | new | old | old |
| the KMS replaces its own | new | old | new |
| slot 1 emptied | new | empty | new |

A slot is emptied only after it was tried that the passphrase that the KMS has opens the *other* one. What a failure
leaves, and who mends it:

* the process dies anywhere: the volume opens; the next change begins with what it finds, and ends like this;
* the new passphrase is known to nobody, as the process died before the KMS had it: it is in slot 0, which the next
  change empties;
* an answer of the KMS is lost: either of the two is in the header; the error is not final, and slot 1 stays;
* the KMS wrote, and reading it again says otherwise: an error, and both stay;
* two callers, on two nodes or of two drivers: one has the lock, the other is told to ask again;
* the node loses the cluster for longer than the lock lasts: it stops before the next step.

A clone or snapshot that is made of the volume in the same seconds may get the one passphrase and the header of the
other; it does not open then, and has to be made again. Change passphrases when nobody makes copies.
"""

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from csi_host.errors import FailedPrecondition, Internal
from csi_host.kms import Passphrase, new_passphrase
from csi_host_rbd.encryption.luks import Luks, refused
from csi_host_rbd.encryption.luks_header import LuksHeader
from csi_host_rbd.encryption.state import EncryptionState, read_state

log = logging.getLogger(__name__)

_KEPT, _SPARE = 0, 1
_V2 = 2


class NotRotatable(FailedPrecondition):
    """The volume's header is not one whose passphrase can be changed here; the message says why."""


class Renewed(Protocol):
    """A lock that is renewed before every step."""

    def renew(self) -> None:
        """Raise what says that the lock may have been lost."""
        ...


class RotatedImage(Protocol):
    """An encrypted image with its passphrase in a KMS."""

    def metadata(self) -> Mapping[str, str]:
        """Return all metadata."""
        ...

    def luks_header(self) -> LuksHeader | None:
        """Return the header that the image has, None when it has none that is whole."""
        ...

    def passphrase(self) -> Passphrase:
        """Return the passphrase that the KMS has."""
        ...

    def check_replaceable(self) -> None:
        """Raise PassphraseCannotChange when the KMS never can."""
        ...

    def replace_passphrase(self, passphrase: Passphrase, *, known: Passphrase) -> None:
        """Have the KMS keep another passphrase in place of the known one."""
        ...


def rotate(
    luks: Luks, image: RotatedImage, lock: AbstractContextManager[Renewed], device: AbstractContextManager[str]
) -> None:
    """Give the image another passphrase; ``device`` shows the whole image with its header, for writing.

    Raises NotRotatable, PassphraseCannotChange, PassphraseRefused, RotationPending, and what the KMS fails with.
    """
    image.check_replaceable()
    _check_header(image)
    with lock as held, device as path:
        _Rotation(luks, image, held, path).run()


class _Rotation:
    """One change, step by step."""

    def __init__(self, luks: Luks, image: RotatedImage, lock: Renewed, device: str) -> None:
        self._luks = luks
        self._image = image
        self._lock = lock
        self._device = device

    def run(self) -> None:
        old, new = self._image.passphrase(), new_passphrase()
        self._ensure(_SPARE, old, while_opened_by=_KEPT)
        self._ensure(_KEPT, new, while_opened_by=_SPARE, authorized_by=old)
        self._lock.renew()
        self._image.replace_passphrase(new, known=old)
        if self._image.passphrase() != new:
            raise Internal(f"{self._device}: the KMS took another passphrase and does not give it back; both open")
        self._lock.renew()
        self._require(_KEPT, new)
        self._luks.remove(self._device, _SPARE)
        log.info(f"{self._device}: the volume has another passphrase")

    def _ensure(
        self, slot: int, wanted: Passphrase, *, while_opened_by: int, authorized_by: Passphrase | None = None
    ) -> None:
        """Have ``wanted`` open the slot; what else is in it goes, once it is tried that the other slot opens."""
        known = authorized_by or wanted
        self._lock.renew()
        if self._luks.opens_slot(self._device, slot, wanted):
            return
        if slot in self._luks.slots(self._device):
            self._require(while_opened_by, known)
            self._luks.remove(self._device, slot)
        self._lock.renew()
        self._luks.add(self._device, slot, wanted, authorized_by=known)
        self._require(slot, wanted)

    def _require(self, slot: int, passphrase: Passphrase) -> None:
        if not self._luks.opens_slot(self._device, slot, passphrase):
            raise refused(f"{self._device}, slot {slot}")


def _check_header(image: RotatedImage) -> None:
    if read_state(image.metadata()) is not EncryptionState.ENCRYPTED:
        raise NotRotatable("the image has no LUKS header yet, or is not encrypted; there is nothing to change")
    header = image.luks_header()
    if header is None or header.version != _V2:
        found = "none that is whole" if header is None else f"one of version {header.version}"
        raise NotRotatable(f"the passphrase of a LUKS header of version 2 can be changed, and the image has {found}")
