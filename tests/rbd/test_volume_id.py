import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_host_rbd.volume_id import InvalidVolumeId, VolumeId

UUID = "00000000-1111-2222-bbbb-cacacacacaca"

# Text that grpc can carry: no lone surrogates.
_texts = st.text(st.characters(codec="utf-8"), max_size=64)


def test_the_known_vector_is_decoded() -> None:
    handle = f"ffff-0024-01616094-9d93-4178-bf45-c7eac19e8b15-000000000000ffff-{UUID}"
    parsed = VolumeId.parse(handle)
    assert parsed == VolumeId(
        version=0xFFFF, cluster_id="01616094-9d93-4178-bf45-c7eac19e8b15", pool_id=0xFFFF, uuid=UUID
    )
    assert str(parsed) == handle


def test_a_handle_is_written_as_ceph_csi_writes_it() -> None:
    volume_id = VolumeId(cluster_id="ceph-a", pool_id=3, uuid="2a7c9c3e-0d5f-4c0e-9a52-6f0b7a1d9e11")
    assert str(volume_id) == "0001-0006-ceph-a-0000000000000003-2a7c9c3e-0d5f-4c0e-9a52-6f0b7a1d9e11"


def test_upper_case_digits_are_read_and_separators_are_not_looked_at() -> None:
    assert VolumeId.parse("0001x0002yceXzz".replace("zz", "") + f"00000000000000AB.{UUID}").pool_id == 0xAB


def test_a_pool_id_is_signed() -> None:
    assert VolumeId.parse(f"0001-0002-ce-ffffffffffffffff-{UUID}").pool_id == -1


@given(
    cluster_id=_texts.filter(lambda text: len(text.encode()) <= 64),
    pool_id=st.integers(-(2**63), 2**63 - 1),
    uuid=st.text("0123456789abcdef-", min_size=36, max_size=36),
)
def test_every_handle_is_read_back(cluster_id: str, pool_id: int, uuid: str) -> None:
    volume_id = VolumeId(cluster_id=cluster_id, pool_id=pool_id, uuid=uuid)
    assert VolumeId.parse(str(volume_id)) == volume_id
    assert len(str(volume_id).encode()) <= 128


@given(st.text() | st.text("0123456789abcdefABCDEF-+_ ", min_size=60, max_size=130))
def test_junk_is_refused_and_nothing_else_happens(text: str) -> None:
    try:
        parsed = VolumeId.parse(text)
    except InvalidVolumeId:
        return
    assert len(parsed.uuid) == 36


@pytest.mark.parametrize(
    ("handle", "why"),
    [
        ("", "too few"),
        ("pvc-1", "too few"),
        (f"zzzz-0002-ce-0000000000000001-{UUID}", "version"),
        (f"0001-zzzz-ce-0000000000000001-{UUID}", "length of the cluster id"),
        (f"0001-00+2-ce-0000000000000001-{UUID}", "length of the cluster id"),
        (f"0001-ffff-ce-0000000000000001-{UUID}", "before the pool id"),
        (f"0001-0002-ce-00000000_0000001-{UUID}", "pool id"),
        (f"0001-0002-ce-0000000000000001-{UUID}0", "37 bytes instead of 36"),
        (f"0001-0003-aé-0000000000000001-{UUID[:-1]}", "35 bytes"),
        ("9" * 70000, "before the pool id|instead of"),
    ],
)
def test_the_reason_is_named(handle: str, why: str) -> None:
    with pytest.raises(InvalidVolumeId, match=why):
        VolumeId.parse(handle)


def test_a_cluster_id_that_is_too_long_cannot_be_written() -> None:
    assert len(str(VolumeId(cluster_id="c" * 64, pool_id=1, uuid=UUID))) == 128
    with pytest.raises(InvalidVolumeId, match="65 bytes"):
        str(VolumeId(cluster_id="c" * 65, pool_id=1, uuid=UUID))
    with pytest.raises(InvalidVolumeId, match="35"):
        str(VolumeId(cluster_id="c", pool_id=1, uuid=UUID[:-1]))
