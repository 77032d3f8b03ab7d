import base64

import pytest

from csi_host.errors import InvalidArgument
from csi_host_rbd.credentials import Credentials

KEY = base64.b64encode(b"\x01\x00" + b"\x02" * 8 + b"\x10\x00" + b"k" * 16).decode()


def test_a_user_and_its_key_are_read() -> None:
    assert Credentials.from_secrets({"userID": "csi", "userKey": f" {KEY}\n", "other": "x"}) == Credentials(
        user_id="csi", key=KEY
    )


@pytest.mark.parametrize(("admin", "user"), [("kubernetes", "kubernetes"), ("", "admin")])
def test_the_secret_of_an_in_tree_volume_is_read(admin: str, user: str) -> None:
    assert Credentials.from_secrets({"key": KEY, "adminId": admin}) == Credentials(user_id=user, key=KEY)


@pytest.mark.parametrize(
    ("secrets", "missing"),
    [
        ({}, "userID and userKey"),
        ({"userKey": KEY}, "userID"),
        ({"userID": "csi"}, "userKey"),
        ({"userID": "csi", "userKey": ""}, "userKey"),
    ],
)
def test_what_is_missing_is_named(secrets: dict[str, str], missing: str) -> None:
    with pytest.raises(InvalidArgument, match=missing):
        Credentials.from_secrets(secrets)


@pytest.mark.parametrize("key", ["not base64 at all!", "QUJD", KEY[:-8], base64.b64encode(b"\0" * 40).decode(), "ключ"])
def test_a_key_that_is_none_is_refused_before_ceph_sees_it_and_is_not_shown(key: str) -> None:
    with pytest.raises(InvalidArgument, match="userKey to be a Ceph key") as caught:
        Credentials.from_secrets({"userID": "csi", "userKey": key})
    assert key not in str(caught.value)


def test_a_key_is_never_shown() -> None:
    credentials = Credentials(user_id="csi", key=KEY)
    assert KEY not in f"{credentials!r} {credentials}"
    assert "csi" in repr(credentials)
