"""Keys on images that are dictionaries, so that the process can die between any two writes."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from csi_host.errors import CsiError
from csi_host.kms import (
    Kms,
    KmsRequest,
    KmsUnavailable,
    Passphrase,
    PassphraseExists,
    PassphraseNotFound,
    PassphraseUnreadable,
)
from csi_host_rbd.encryption.keys import ImageInUseUnencrypted, Keys, KeySource, OtherPassphrase, SourceNotPrepared
from csi_host_rbd.encryption.secret_kms import Derivation, MetadataKms, SecretKms

_STATE, _DEK = "rbd.csi.ceph.com/encrypted", "rbd.csi.ceph.com/dek"
_OLD_STATE, _OLD_DEK = "." + _STATE, "." + _DEK
_MARK = "csi-host/filesystem"


class Died(BaseException):
    """The process was killed here."""


@dataclass
class ImageInMemory:
    """An image's metadata; the process dies at the write number ``dies_at``, counted from 1, before it is done."""

    values: dict[str, str] = field(default_factory=dict)
    dies_at: int = 0
    writes: list[str] = field(default_factory=list)

    def metadata(self) -> dict[str, str]:
        return dict(self.values)

    def set_metadata(self, name: str, value: str) -> None:
        self._write(f"set {name}")
        self.values[name] = value

    def remove_metadata(self, name: str) -> None:
        self._write(f"remove {name}")
        self.values.pop(name, None)

    def _write(self, what: str) -> None:
        self.writes.append(what)
        if len(self.writes) == self.dies_at:
            raise Died


@dataclass
class KeepingKms:
    """A KMS that keeps passphrases itself; ``fails`` is what it answers with, before the work or after it."""

    kept: dict[str, str] = field(default_factory=dict)
    fails: BaseException | None = None
    fails_after: bool = False
    calls: list[str] = field(default_factory=list)
    common_passphrase: None = None

    def check(self) -> None:
        self._enter("check")

    def store(self, volume_id: str, passphrase: Passphrase) -> str:
        self._enter("store")
        if volume_id in self.kept:
            raise PassphraseExists(volume_id)
        self.kept[volume_id] = passphrase.reveal()
        self._leave()
        return ""

    def fetch(self, volume_id: str, beside: str) -> Passphrase:
        assert beside == ""
        self._enter("fetch")
        if volume_id not in self.kept:
            raise PassphraseNotFound(volume_id)
        return Passphrase(self.kept[volume_id])

    def replace(self, volume_id: str, passphrase: Passphrase, *, known: Passphrase, beside: str) -> str:
        assert self.fetch(volume_id, beside) == known
        self._enter("replace")
        self.kept[volume_id] = passphrase.reveal()
        self._leave()
        return ""

    def remove(self, volume_id: str) -> None:
        self._enter("remove")
        self.kept.pop(volume_id, None)

    def _enter(self, what: str) -> None:
        self.calls.append(what)
        if self.fails is not None and not self.fails_after:
            raise self.fails

    def _leave(self) -> None:
        if self.fails is not None:
            raise self.fails


_DERIVATION = Derivation()


def _metadata_kms() -> MetadataKms:
    return MetadataKms(KmsRequest(kms_id="m", secrets={"encryptionPassphrase": "s"}), _DERIVATION)


def _secret_kms() -> SecretKms:
    return SecretKms(KmsRequest(kms_id="default", secrets={"encryptionPassphrase": "s"}))


_KINDS: dict[str, Callable[[], Kms]] = {"default": _secret_kms, "metadata": _metadata_kms, "keeping": KeepingKms}


@pytest.fixture(params=list(_KINDS))
def kms(request: pytest.FixtureRequest) -> Kms:
    return _KINDS[request.param]()


def _deaths(act: Callable[[ImageInMemory], None], fresh: Callable[[], ImageInMemory]) -> Iterator[ImageInMemory]:
    """Do ``act`` on a fresh image again and again, dying one write later each time, until it does not die."""
    dies_at = 0
    while True:
        dies_at += 1
        image = fresh()
        image.dies_at = dies_at
        try:
            act(image)
        except Died:
            image.dies_at = 0
            yield image
        else:
            return


def test_a_new_image_gets_its_passphrase_first_and_its_mark_last(kms: Kms) -> None:
    image, keys = ImageInMemory(), Keys(kms)
    keys.prepare(image, "h")
    assert image.values[_STATE] == "encryptionPrepared"
    assert image.writes[-1] == f"set {_STATE}"
    assert keys.passphrase(image.values, "h") == keys.passphrase(image.values, "h")


def test_two_images_have_two_passphrases_unless_the_kms_has_one_for_all(kms: Kms) -> None:
    one, other, keys = ImageInMemory(), ImageInMemory(), Keys(kms)
    keys.prepare(one, "one")
    keys.prepare(other, "other")
    are_same = keys.passphrase(one.values, "one") == keys.passphrase(other.values, "other")
    assert are_same == (kms.common_passphrase is not None)


@pytest.mark.parametrize("name", [_STATE, _OLD_STATE])
@pytest.mark.parametrize("state", ["encrypted", "encryptionPrepared", "requiresEncryption"])
def test_17_8_an_image_that_has_a_state_is_left_exactly_as_it_is(kms: Kms, name: str, state: str) -> None:
    image = ImageInMemory({name: state, _DEK: "theirs"})
    Keys(kms).prepare(image, "h")
    assert image.writes == []


def test_preparing_twice_changes_nothing_and_asks_the_kms_nothing() -> None:
    kms = KeepingKms()
    image, keys = ImageInMemory(), Keys(kms)
    keys.prepare(image, "h")
    before, calls = dict(image.values), list(kms.calls)
    keys.prepare(image, "h")
    assert (image.values, kms.calls) == (before, calls)


def test_a_passphrase_without_a_mark_is_kept_and_marked(kms: Kms) -> None:
    whole = ImageInMemory()
    keys = Keys(kms)
    keys.prepare(whole, "h")
    passphrase = keys.passphrase(whole.values, "h")
    cut_off = ImageInMemory({name: value for name, value in whole.values.items() if name != _STATE})
    keys.prepare(cut_off, "h")
    assert cut_off.writes == [f"set {_STATE}"]
    assert keys.passphrase(cut_off.values, "h") == passphrase


def test_prepare_may_die_at_every_write_and_the_next_one_ends_it(kms: Kms) -> None:
    keys = Keys(kms)
    deaths = 0
    for image in _deaths(lambda image: keys.prepare(image, "h"), ImageInMemory):
        deaths += 1
        found = keys.passphrase(image.values, "h") if image.values or isinstance(kms, KeepingKms) else None
        keys.prepare(image, "h")
        assert image.values[_STATE] == "encryptionPrepared"
        assert found is None or keys.passphrase(image.values, "h") == found
    assert deaths >= 1


def test_a_lost_answer_of_the_kms_leaves_a_passphrase_that_the_retry_uses() -> None:
    kms = KeepingKms(fails=KmsUnavailable("no answer"), fails_after=True)
    image, keys = ImageInMemory(), Keys(kms)
    with pytest.raises(KmsUnavailable):
        keys.prepare(image, "h")
    assert image.writes == []
    stored = dict(kms.kept)
    kms.fails = None
    keys.prepare(image, "h")
    assert kms.kept == stored
    assert image.values == {_STATE: "encryptionPrepared"}


@pytest.mark.parametrize("mark", ["formatted xfs", "formatting ext4", "raw"])
def test_an_image_that_was_used_unencrypted_is_refused_and_left_as_it_is(kms: Kms, mark: str) -> None:
    image = ImageInMemory({_MARK: mark})
    with pytest.raises(ImageInUseUnencrypted):
        Keys(kms).prepare(image, "h")
    assert image.writes == []


def test_a_wrapped_passphrase_that_cannot_be_read_is_not_written_over() -> None:
    image = ImageInMemory()
    Keys(_metadata_kms()).prepare(image, "another handle")
    del image.values[_STATE]
    before = dict(image.values)
    with pytest.raises(PassphraseUnreadable):
        Keys(_metadata_kms()).prepare(image, "h")
    assert image.values == before


def _source(kms: Kms, state: str = "encrypted", *, old_names: bool = False) -> KeySource:
    image, keys = ImageInMemory(), Keys(kms)
    keys.prepare(image, "source")
    image.values[_STATE] = state
    if old_names:
        image.values = {"." + name: value for name, value in image.values.items()}
    return KeySource(keys=keys, metadata=image.values, handle="source")


def _clone_of(source: KeySource) -> ImageInMemory:
    """Return what librbd makes of the source: it copies the metadata."""
    return ImageInMemory(dict(source.metadata))


@pytest.mark.parametrize("source_kind", list(_KINDS))
@pytest.mark.parametrize("target_kind", ["metadata", "keeping"])
def test_a_clone_has_its_source_s_passphrase_under_its_own_handle_whatever_keeps_them(
    source_kind: str, target_kind: str
) -> None:
    source = _source(_KINDS[source_kind]())
    keys, clone = Keys(_KINDS[target_kind]()), _clone_of(source)
    keys.copy(clone, "clone", source=source)
    assert keys.passphrase(clone.values, "clone") == source.passphrase()
    assert set(clone.values) == ({_STATE, _DEK} if target_kind == "metadata" else {_STATE})
    writes = len(clone.writes)
    keys.copy(clone, "clone", source=source)
    assert len(clone.writes) == writes


@pytest.mark.parametrize("old_names", [False, True])
@pytest.mark.parametrize(
    ("state", "copied"),
    [
        ("encrypted", "encrypted"),
        ("encryptionPrepared", "encryptionPrepared"),
        ("requiresEncryption", "encryptionPrepared"),
    ],
)
def test_a_clone_has_its_source_s_state_under_today_s_name(old_names: bool, state: str, copied: str) -> None:
    source = _source(_metadata_kms(), state, old_names=old_names)
    clone = _clone_of(source)
    Keys(_metadata_kms()).copy(clone, "clone", source=source)
    assert set(clone.values) == {_STATE, _DEK}
    assert clone.values[_STATE] == copied


def test_a_clone_in_the_same_kms_may_die_at_every_write_and_the_next_copy_ends_it(kms: Kms) -> None:
    source = _source(kms, "requiresEncryption", old_names=True)
    keys = Keys(kms)
    deaths = 0
    for number, clone in enumerate(
        _deaths(lambda image: keys.copy(image, f"clone {image.dies_at}", source=source), lambda: _clone_of(source)), 1
    ):
        deaths += 1
        keys.copy(clone, f"clone {number}", source=source)
        assert keys.passphrase(clone.values, f"clone {number}") == source.passphrase()
        assert clone.values[_STATE] == "encryptionPrepared"
        assert not {_OLD_STATE, _OLD_DEK} & set(clone.values)
    assert deaths >= 2


def test_a_clone_that_moves_into_a_kms_that_keeps_may_die_at_every_write_as_well() -> None:
    source = _source(_metadata_kms())
    kms = KeepingKms()
    keys = Keys(kms)
    deaths = 0
    for number, clone in enumerate(
        _deaths(lambda image: keys.copy(image, f"clone {image.dies_at}", source=source), lambda: _clone_of(source)), 1
    ):
        deaths += 1
        keys.copy(clone, f"clone {number}", source=source)
        assert keys.passphrase(clone.values, f"clone {number}") == source.passphrase()
        assert clone.values == {_STATE: "encrypted"}
    assert deaths >= 1


def test_a_clone_whose_handle_has_a_passphrase_of_its_own_in_the_kms_is_refused() -> None:
    source = _source(_metadata_kms())
    clone = _clone_of(source)
    with pytest.raises(OtherPassphrase):
        Keys(KeepingKms(kept={"clone": "another"})).copy(clone, "clone", source=source)


def test_the_state_is_right_before_the_clone_has_a_passphrase_of_its_own() -> None:
    source = _source(_metadata_kms(), "requiresEncryption", old_names=True)
    clone = _clone_of(source)
    Keys(_metadata_kms()).copy(clone, "clone", source=source)
    assert clone.writes[:2] == [f"set {_STATE}", f"set {_DEK}"]


def test_a_copy_whose_handle_kept_what_its_source_had_before_is_refused() -> None:
    source = _source(KeepingKms())
    with pytest.raises(OtherPassphrase):
        Keys(KeepingKms(kept={"clone": "the source's former one"})).copy(_clone_of(source), "clone", source=source)


def test_a_late_copy_does_not_take_back_that_the_clone_was_encrypted_meanwhile(kms: Kms) -> None:
    source = _source(kms, "encryptionPrepared")
    keys, clone = Keys(kms), _clone_of(source)
    keys.copy(clone, "clone", source=source)
    clone.values[_STATE] = "encrypted"
    keys.copy(clone, "clone", source=source)
    assert clone.values[_STATE] == "encrypted"


def test_a_source_that_was_encrypted_while_it_was_cloned_counts_as_not_encrypted_yet() -> None:
    source = _source(_metadata_kms(), "encryptionPrepared")
    clone = _clone_of(source)
    clone.values[_STATE] = "encrypted"
    Keys(_metadata_kms()).copy(clone, "clone", source=source)
    assert clone.values[_STATE] == "encryptionPrepared"


def test_one_passphrase_for_all_is_no_home_for_another_and_nothing_is_written() -> None:
    source = _source(_metadata_kms())
    clone = _clone_of(source)
    with pytest.raises(OtherPassphrase):
        Keys(_secret_kms()).copy(clone, "clone", source=source)
    assert clone.writes == []


def test_a_source_without_a_state_is_an_error_and_nothing_is_written(kms: Kms) -> None:
    source = KeySource(keys=Keys(kms), metadata={}, handle="source")
    clone = ImageInMemory()
    with pytest.raises(SourceNotPrepared):
        Keys(kms).copy(clone, "clone", source=source)
    assert clone.writes == []


@pytest.mark.parametrize("kind", ["metadata", "keeping"])
def test_a_source_whose_passphrase_is_lost_is_an_error_and_nothing_is_written(kind: str) -> None:
    source = KeySource(keys=Keys(_KINDS[kind]()), metadata={_STATE: "encrypted"}, handle="source")
    clone = _clone_of(source)
    with pytest.raises(CsiError):
        Keys(_KINDS[kind]()).copy(clone, "clone", source=source)
    assert clone.writes == []


def test_a_source_shows_no_metadata() -> None:
    source = _source(_metadata_kms())
    assert json.loads(source.metadata[_DEK])["dek"] not in repr(source)
