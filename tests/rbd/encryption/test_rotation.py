import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from csi_host.errors import CsiError
from csi_host.kms import KmsUnavailable, Passphrase, PassphraseCannotChange
from csi_host.process import run
from csi_host_rbd import encryption
from csi_host_rbd.encryption.luks import Luks, PassphraseRefused
from csi_host_rbd.encryption.luks_header import LuksHeader, read_header
from csi_host_rbd.encryption.rotation import NotRotatable, rotate
from csi_host_rbd.encryption.state import STATE
from csi_host_rbd.testing.fast_luks import fast_luks
from csi_host_rbd.testing.kills import killed_at

MIB = 1024**2
LUKS = Luks(fast_luks(run))
FIRST, OTHER = Passphrase("the first"), Passphrase("another")
PLACES = [Path(path) for path in encryption.__path__]


class Lock:
    """A lock that is lost at the ``lost_at``-th renewal."""

    def __init__(self, lost_at: int = 0) -> None:
        self.renewals = 0
        self._lost_at = lost_at

    def renew(self) -> None:
        self.renewals += 1
        if self.renewals == self._lost_at:
            raise KmsUnavailable("the lock is lost")


@dataclass
class OneImage:
    """An image in a file, whose KMS is ``kept``; ``fails`` is what the KMS ends with, after its work or before."""

    path: Path
    kept: Passphrase = field(default_factory=lambda: FIRST)
    state: str = "encrypted"
    fails: CsiError | None = None
    fails_after: bool = False
    is_common: bool = False

    def metadata(self) -> Mapping[str, str]:
        return {STATE: self.state}

    def luks_header(self) -> LuksHeader | None:
        content = self.path.read_bytes()
        return read_header(lambda offset, length: content[offset : offset + length])

    def passphrase(self) -> Passphrase:
        return self.kept

    def check_replaceable(self) -> None:
        if self.is_common:
            raise PassphraseCannotChange("all have one")

    def replace_passphrase(self, passphrase: Passphrase, *, known: Passphrase) -> None:
        assert known == self.kept
        if self.fails is not None and not self.fails_after:
            raise self.fails
        self.kept = passphrase
        if self.fails is not None:
            raise self.fails

    def rotate(self, lock: Lock | None = None) -> None:
        rotate(LUKS, self, nullcontext(lock or Lock()), nullcontext(str(self.path)))

    def assert_opens(self) -> None:
        assert LUKS.accepts(str(self.path), self.kept)

    def assert_rotated(self) -> None:
        assert LUKS.slots(str(self.path)) == {0}
        assert LUKS.opens_slot(str(self.path), 0, self.kept)
        assert self.kept not in (FIRST, OTHER)
        assert not LUKS.accepts(str(self.path), FIRST)


@pytest.fixture(scope="module")
def formatted(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("luks") / "image"
    path.write_bytes(bytes(17 * MIB))
    LUKS.format(str(path), FIRST)
    return path.read_bytes()


@pytest.fixture
def image(tmp_path: Path, formatted: bytes) -> OneImage:
    path = tmp_path / "image"
    path.write_bytes(formatted)
    return OneImage(path)


def test_the_header_and_the_kms_get_another_passphrase(image: OneImage) -> None:
    image.rotate()
    image.assert_rotated()
    before = image.kept
    image.rotate()
    image.assert_rotated()
    assert image.kept != before


def test_wherever_it_is_cut_off_the_volume_opens_and_the_next_change_is_whole(
    image: OneImage, formatted: bytes
) -> None:
    for step in itertools.count(1):
        image.path.write_bytes(formatted)
        image.kept = FIRST
        with killed_at(step, PLACES) as happened:
            image.rotate()
        image.assert_opens()
        image.rotate()
        image.assert_rotated()
        if not happened:
            break
    # Fewer steps than these, and the killing has not worked.
    assert step > 20


def test_whatever_step_fails_the_volume_opens(image: OneImage, formatted: bytes) -> None:
    for step in itertools.count(1):
        image.path.write_bytes(formatted)
        image.kept, lock = FIRST, Lock(lost_at=step)
        try:
            image.rotate(lock)
        except KmsUnavailable:
            image.assert_opens()
            continue
        break
    image.assert_rotated()
    assert step > 4


@pytest.mark.parametrize("fails_after", [False, True])
def test_when_the_answer_of_the_kms_is_lost_both_passphrases_open(image: OneImage, fails_after: bool) -> None:
    image.fails, image.fails_after = KmsUnavailable("no answer"), fails_after
    with pytest.raises(KmsUnavailable):
        image.rotate()
    image.assert_opens()
    assert LUKS.accepts(str(image.path), FIRST)
    assert len(LUKS.slots(str(image.path))) == 2
    image.fails = None
    image.rotate()
    image.assert_rotated()


def test_a_slot_that_somebody_else_filled_is_not_lost_before_the_other_opens(image: OneImage) -> None:
    LUKS.add(str(image.path), 1, OTHER, authorized_by=FIRST)
    image.rotate()
    image.assert_rotated()
    assert not LUKS.accepts(str(image.path), OTHER)


def test_slots_that_are_not_the_drivers_stay(image: OneImage) -> None:
    LUKS.add(str(image.path), 5, OTHER, authorized_by=FIRST)
    image.rotate()
    assert LUKS.slots(str(image.path)) == {0, 5}
    assert LUKS.opens_slot(str(image.path), 5, OTHER)


def test_a_header_that_the_kms_does_not_open_is_not_touched(image: OneImage) -> None:
    image.kept = OTHER
    before = image.path.read_bytes()
    with pytest.raises(CsiError):
        image.rotate()
    assert image.path.read_bytes() == before
    LUKS.add(str(image.path), 1, Passphrase("third"), authorized_by=FIRST)
    before = image.path.read_bytes()
    with pytest.raises(PassphraseRefused):
        image.rotate()
    assert image.path.read_bytes() == before


@pytest.mark.parametrize(
    ("arrange", "error"),
    [
        (lambda image: setattr(image, "state", "encryptionPrepared"), NotRotatable),
        (lambda image: image.path.write_bytes(bytes(17 * MIB)), NotRotatable),
        (lambda image: setattr(image, "is_common", True), PassphraseCannotChange),
    ],
)
def test_what_cannot_be_changed_is_refused_before_the_lock_is_taken(
    image: OneImage, arrange: Callable[[OneImage], object], error: type[CsiError]
) -> None:
    arrange(image)

    @contextmanager
    def never() -> Iterator[Lock]:
        pytest.fail("the lock was taken")
        yield Lock()

    lock: AbstractContextManager[Lock] = never()
    with pytest.raises(error):
        rotate(LUKS, image, lock, nullcontext(str(image.path)))
