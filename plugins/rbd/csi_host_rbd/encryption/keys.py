"""The passphrases of encrypted images: made, passed on to clones, found and destroyed.

A passphrase is never replaced but by a node that has had the LUKS header opened by another one (``replace``, see
rotation): from the moment an image has one, a node may have written a header with it, and another passphrase would make
the data unreadable for ever. What a failure leaves behind, and who mends it:

* the KMS does not answer: UNAVAILABLE, nothing is undone, the retry goes on; refused or misconfigured: a final code,
  the caller takes back what it made;
* the process dies after the passphrase was stored and before the image was marked: the retry finds it, in the KMS or
  beside the image, and only marks;
* an answer of the KMS is lost: the passphrase may be there, and the retry finds it there;
* a clone: librbd copies the source's metadata, so the clone first has the source's state and its wrapped passphrase,
  which the clone's handle does not unwrap. The state is set right first and the passphrase wrapped anew last: one
  that the clone's own handle unwraps says that the copy is whole;
* two callers: the KMS takes a first passphrase only (where it can; else the volume's lock is all there is).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from csi_host.errors import FailedPrecondition
from csi_host.kms import (
    Kms,
    Passphrase,
    PassphraseCannotChange,
    PassphraseExists,
    PassphraseNotFound,
    PassphraseUnreadable,
    new_passphrase,
)
from csi_host_rbd.encryption.state import (
    FORMER_STATE,
    FORMER_WRAPPED,
    STATE,
    WRAPPED,
    EncryptionState,
    read_state,
    read_wrapped,
)
from csi_host_rbd.node.marks import MARK_KEY


class ImageInUseUnencrypted(FailedPrecondition):
    """The image of an encrypted volume holds data that is not encrypted; it is left as it is."""


class SourceNotPrepared(FailedPrecondition):
    """The source of a clone counts as encrypted and its image has no state of encryption."""


class OtherPassphrase(FailedPrecondition):
    """A clone would get another passphrase than the one that its source's data is encrypted with."""


class EncryptedImage(Protocol):
    """An image that is open for writing, as far as its metadata goes."""

    def metadata(self) -> Mapping[str, str]:
        """Return all metadata."""
        ...

    def set_metadata(self, name: str, value: str) -> None:
        """Write one key."""
        ...

    def remove_metadata(self, name: str) -> None:
        """Remove one key; fine when there is none."""
        ...


class Keys:
    """The passphrases in one KMS, for one call; ``handle`` is always the text that the CO has."""

    def __init__(self, kms: Kms) -> None:
        self._kms = kms

    def check(self) -> None:
        """Raise what every use would end with; to be asked before anything is made."""
        self._kms.check()

    def prepare(self, image: EncryptedImage, handle: str) -> None:
        """Give a new image its passphrase and mark it for the node to encrypt; one that is marked stays as it is.

        Raises ImageInUseUnencrypted, and what the KMS fails with.
        """
        metadata = image.metadata()
        if read_state(metadata) is not None:
            return
        if MARK_KEY in metadata:
            raise ImageInUseUnencrypted(
                f"the image of volume {handle} was formatted before it was encrypted; it is left as it is"
            )
        self._ensure_passphrase(image, metadata, handle)
        image.set_metadata(STATE, EncryptionState.PREPARED)

    def copy(self, image: EncryptedImage, handle: str, *, source: "KeySource") -> None:
        """Give a clone that nobody has used yet its source's passphrase and state; one that has both stays as it is.

        Raises SourceNotPrepared, OtherPassphrase, and what the KMSs fail with.
        """
        metadata = image.metadata()
        state = _state_of_clone(source, metadata)
        wrapped = ""
        if self._is_copied(metadata, handle, source):
            _mark(image, metadata, read_state(metadata) or state)
        else:
            passphrase = source.passphrase()
            _mark(image, metadata, state)
            wrapped = self._store(image, handle, passphrase, only_this_one=True)
        _remove_stale(image, metadata, source, keeps_wrapped=bool(wrapped))

    def passphrase(self, metadata: Mapping[str, str], handle: str) -> Passphrase:
        """Return the passphrase of an image with this metadata; raises PassphraseNotFound, PassphraseUnreadable."""
        return self._kms.fetch(handle, read_wrapped(metadata))

    def check_replaceable(self) -> None:
        """Raise PassphraseCannotChange when all volumes of this KMS have one passphrase."""
        if self._kms.common_passphrase is not None:
            raise PassphraseCannotChange(
                "all volumes of this KMS have one passphrase, out of the class's secret; only a KMS that keeps one for "
                "each volume (metadata, vault) can replace it"
            )

    def replace(self, image: EncryptedImage, handle: str, passphrase: Passphrase, *, known: Passphrase) -> None:
        """Have another passphrase kept in place of the known one; the image's header is opened by both.

        Raises PassphraseChanged, and what the KMS fails with.
        """
        metadata = image.metadata()
        wrapped = self._kms.replace(handle, passphrase, known=known, beside=read_wrapped(metadata))
        if wrapped:
            image.set_metadata(WRAPPED, wrapped)

    def remove(self, handle: str) -> None:
        """Destroy the passphrase where the KMS keeps it; what is kept beside the image goes with the image."""
        self._kms.remove(handle)

    def _ensure_passphrase(self, image: EncryptedImage, metadata: Mapping[str, str], handle: str) -> None:
        wrapped = read_wrapped(metadata)
        if wrapped:
            # Somebody stopped just before the mark; one that cannot be read is an error, not to be written over.
            self._kms.fetch(handle, wrapped)
            return
        self._store(image, handle, self._kms.common_passphrase or new_passphrase())

    def _store(self, image: EncryptedImage, handle: str, passphrase: Passphrase, *, only_this_one: bool = False) -> str:
        """Have the passphrase kept, or the one that an earlier call stored; returns what is now beside the image."""
        try:
            wrapped = self._kms.store(handle, passphrase)
        except PassphraseExists:
            if self._kms.fetch(handle, "") != passphrase and only_this_one:
                raise OtherPassphrase(f"the KMS has a passphrase for {handle} that is not its source's") from None
            return ""
        if wrapped:
            image.set_metadata(WRAPPED, wrapped)
        return wrapped

    def _is_copied(self, metadata: Mapping[str, str], handle: str, source: "KeySource") -> bool:
        if self._kms.common_passphrase is not None:
            found = self._kms.common_passphrase
        else:
            wrapped = read_wrapped(metadata)
            if wrapped and wrapped == read_wrapped(source.metadata):
                return False
            try:
                found = self._kms.fetch(handle, wrapped)
            except (PassphraseNotFound, PassphraseUnreadable):
                return False
        if found != source.passphrase():
            raise OtherPassphrase(
                f"{handle} would have another passphrase than its source {source.handle}, whose data could not be read "
                "with it"
            )
        return True


@dataclass(frozen=True, kw_only=True)
class KeySource:
    """What a clone is made from: its keys, its image's metadata, and its handle (a volume's or a snapshot's).

    The metadata is to be read before the snapshot that is cloned is taken: a source that is encrypted in between then
    counts as not encrypted yet, which a node finds out, while the reverse would not open.
    """

    keys: Keys
    metadata: Mapping[str, str] = field(repr=False)
    handle: str

    def passphrase(self) -> Passphrase:
        """Return the source's passphrase; raises PassphraseNotFound, PassphraseUnreadable."""
        return self.keys.passphrase(self.metadata, self.handle)


def _state_of_clone(source: KeySource, metadata: Mapping[str, str]) -> EncryptionState:
    """Return the earlier one of the source's state and the one that librbd copied."""
    found = {read_state(source.metadata), read_state(metadata)} - {None}
    if not found:
        raise SourceNotPrepared(f"the source {source.handle} is an encrypted volume, but its image has no such state")
    return EncryptionState.PREPARED if EncryptionState.PREPARED in found else EncryptionState.ENCRYPTED


def _mark(image: EncryptedImage, metadata: Mapping[str, str], state: EncryptionState) -> None:
    if metadata.get(STATE) != state:
        image.set_metadata(STATE, state)


def _remove_stale(
    image: EncryptedImage, metadata: Mapping[str, str], source: KeySource, *, keeps_wrapped: bool
) -> None:
    """Remove what librbd copied from the source and the clone has no use for."""
    stale = [name for name in (FORMER_STATE, FORMER_WRAPPED) if name in metadata]
    if not keeps_wrapped and metadata.get(WRAPPED) == read_wrapped(source.metadata):
        stale.append(WRAPPED)
    for name in stale:
        image.remove_metadata(name)
