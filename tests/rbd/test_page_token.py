"""Tokens of lists: short enough for CSI, exact for every name, refused when they are none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_host_rbd.page_token import PageToken, PageTokenInvalid

UUID = "2a7c9c3e-0d5f-4c0e-9a52-6f0b7a1d9e11"
_names = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=128)


def _token(name: str, *, pool_id: int = 3) -> PageToken:
    return PageToken.after(kind="v", cluster_id="c" * 64, pool_id=pool_id, name=name, uuid=UUID)


@given(name=_names, pool_id=st.integers(min_value=1, max_value=2**63 - 1))
def test_a_token_has_at_most_128_bytes_and_reads_back(name: str, pool_id: int) -> None:
    token = _token(name, pool_id=pool_id)
    assert len(str(token).encode()) <= 128
    assert PageToken.parse(str(token), kind="v") == token
    assert name.startswith(token.name)
    assert token.name == name or token.uuid == UUID


def test_a_name_of_kubernetes_is_in_the_token_as_a_whole() -> None:
    token = _token(f"pvc-{UUID}")
    assert token.name == f"pvc-{UUID}"
    assert token.uuid == ""


def test_the_beginning_of_a_long_name_is_never_cut_within_a_character() -> None:
    assert set(_token("ü" * 64).name) == {"ü"}


@pytest.mark.parametrize(
    "text",
    ["x", "invalid-token", "1.v.0", "2.v.00000000.3..name", "1.s.00000000.3..name", "1.v.00000000.zz..name",
     "1.v.00000000...name", "1.v.00000000.3..", "1.v.00000000.-3..name"],
)  # fmt: skip
def test_what_is_no_token_of_this_list_is_aborted(text: str) -> None:
    with pytest.raises(PageTokenInvalid, match="starting_token"):
        PageToken.parse(text, kind="v")
