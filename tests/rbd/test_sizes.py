import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_host.capacity import GIB, MIB, CapacityRange
from csi_host.errors import InvalidArgument, OutOfRange
from csi_host_rbd.sizes import image_size


@pytest.mark.parametrize(
    ("required", "limit", "expected"),
    [
        (1, 0, MIB),
        (MIB, 0, MIB),
        (MIB + 1, 0, 2 * MIB),
        (GIB - 1, 0, GIB),
        (GIB, 0, GIB),
        (GIB + 1, 0, 2 * GIB),
        (10 * GIB, 10 * GIB, 10 * GIB),
        (0, 0, GIB),
        (0, 5 * MIB + 1, 5 * MIB),
        (0, 20 * GIB, GIB),
        (GIB + MIB, GIB + MIB, GIB + MIB),
    ],
)
def test_sizes_are_rounded_as_ceph_csi_rounds_unless_the_limit_forbids_it(
    required: int, limit: int, expected: int
) -> None:
    assert image_size(CapacityRange(required_bytes=required, limit_bytes=limit)) == expected


def test_without_a_capacity_range_a_volume_has_one_gibibyte() -> None:
    assert image_size(None) == GIB


@pytest.mark.parametrize(("required", "limit"), [(MIB + 1, MIB + 2), (0, MIB - 1), (2**63 - 1, 0)])
def test_a_size_that_cannot_be_made_is_out_of_range_and_names_the_limit(required: int, limit: int) -> None:
    with pytest.raises(OutOfRange, match="limit"):
        image_size(CapacityRange(required_bytes=required, limit_bytes=limit))


@pytest.mark.parametrize(("required", "limit"), [(-1, 0), (0, -1), (2, 1)])
def test_a_range_that_contradicts_itself_is_refused(required: int, limit: int) -> None:
    with pytest.raises(InvalidArgument, match="capacity_range"):
        CapacityRange(required_bytes=required, limit_bytes=limit)


@given(required=st.integers(1, 2**50), slack=st.integers(0, 2**40))
def test_a_size_is_never_below_what_is_required_nor_above_the_limit(required: int, slack: int) -> None:
    capacity = CapacityRange(required_bytes=required, limit_bytes=required + slack)
    try:
        size = image_size(capacity)
    except OutOfRange:
        assert slack < MIB
    else:
        assert required <= size <= required + slack
        assert size % MIB == 0
