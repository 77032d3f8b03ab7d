import pytest

from csi_host_rbd.encryption.state import EncryptionState, EncryptionStateUnknown, read_state, read_wrapped

_NEW, _OLD = "rbd.csi.ceph.com/encrypted", ".rbd.csi.ceph.com/encrypted"


@pytest.mark.parametrize("name", [_NEW, _OLD])
@pytest.mark.parametrize(
    ("value", "state"),
    [
        ("encryptionPrepared", EncryptionState.PREPARED),
        ("requiresEncryption", EncryptionState.PREPARED),
        ("encrypted", EncryptionState.ENCRYPTED),
        (" encrypted\n", EncryptionState.ENCRYPTED),
        ("", None),
    ],
)
def test_both_names_and_all_values_are_read(name: str, value: str, state: EncryptionState | None) -> None:
    assert read_state({name: value, "other": "encrypted"}) is state


def test_the_new_name_goes_first_and_an_empty_one_leaves_the_old() -> None:
    assert read_state({_NEW: "encrypted", _OLD: "requiresEncryption"}) is EncryptionState.ENCRYPTED
    assert read_state({_NEW: "", _OLD: "requiresEncryption"}) is EncryptionState.PREPARED
    assert read_state({}) is None


def test_another_value_is_an_error_that_names_the_key() -> None:
    with pytest.raises(EncryptionStateUnknown, match=r"rbd\.csi\.ceph\.com/encrypted: expected one of .*'yes'"):
        read_state({_NEW: "yes"})


def test_the_wrapped_passphrase_is_read_under_both_names() -> None:
    assert read_wrapped({"rbd.csi.ceph.com/dek": "new", ".rbd.csi.ceph.com/dek": "old"}) == "new"
    assert read_wrapped({".rbd.csi.ceph.com/dek": "old"}) == "old"
    assert read_wrapped({}) == ""
