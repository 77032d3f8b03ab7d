import copy
import pickle
from typing import Any

import pytest

from csi_host.kms import (
    KmsRequest,
    KmsType,
    KmsTypeConflict,
    KmsTypes,
    KmsTypeUnknown,
    Passphrase,
    new_passphrase,
)

_HIDDEN = "hidden-word"


def _never(_: KmsRequest) -> Any:
    raise AssertionError("nobody asked for this one")


def _type(name: str) -> KmsType:
    return KmsType(name=name, summary="a test", create=_never)


def test_a_passphrase_shows_itself_to_reveal_only() -> None:
    passphrase = Passphrase(_HIDDEN)
    assert passphrase.reveal() == _HIDDEN
    shown = [
        repr(passphrase),
        str(passphrase),
        f"{passphrase}",
        f"{passphrase!r}",
        repr([passphrase]),
    ]
    assert not [text for text in shown if _HIDDEN in text]


@pytest.mark.parametrize("write", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_passphrase_is_not_written_or_copied_by_accident(write: Any) -> None:
    with pytest.raises(TypeError, match="not to be written"):
        write(Passphrase(_HIDDEN))


def test_passphrases_are_compared_by_their_text_and_are_no_keys() -> None:
    assert Passphrase("a") == Passphrase("a")
    assert Passphrase("a") != Passphrase("b")
    assert Passphrase("ä") != "ä"
    with pytest.raises(TypeError, match="unhashable"):
        {Passphrase("a"): 1}


def test_a_passphrase_is_not_empty() -> None:
    with pytest.raises(ValueError, match="at least one character"):
        Passphrase("")


def test_a_new_passphrase_is_20_random_bytes_in_28_characters() -> None:
    texts = {new_passphrase().reveal() for _ in range(100)}
    assert len(texts) == 100
    assert {len(text) for text in texts} == {28}
    assert all(text.endswith("=") for text in texts)
    assert "".join(texts).replace("=", "").replace("-", "").replace("_", "").isalnum()


def test_what_a_kms_is_made_with_shows_no_secret() -> None:
    request = KmsRequest(kms_id="v", section={"token": _HIDDEN}, secrets={"key": _HIDDEN}, tenant="shop")
    assert _HIDDEN not in repr(request)


def test_a_kind_is_found_by_name_and_an_unknown_one_is_answered_with_those_there_are() -> None:
    types = KmsTypes([(_type("one"), "a 1"), (_type("two"), "b 2")])
    assert types.find("two").name == "two"
    with pytest.raises(KmsTypeUnknown, match="no installed plugin brings a KMS of type 'three'; there are: one, two"):
        types.find("three")
    with pytest.raises(KmsTypeUnknown, match="there are: none"):
        KmsTypes().find("one")


def test_two_kinds_of_one_name_are_refused_naming_both_distributions_and_the_others_serve() -> None:
    types = KmsTypes([(_type("one"), "csi-a 1"), (_type("one"), "csi-b 2"), (_type("two"), "csi-b 2")])
    with pytest.raises(KmsTypeConflict, match=r"'one' is brought by csi-a 1 and csi-b 2"):
        types.find("one")
    assert [str(conflict) for conflict in types.conflicts] == [
        "KMS type 'one' is brought by csi-a 1 and csi-b 2: uninstall all but one"
    ]
    assert types.find("two").name == "two"
