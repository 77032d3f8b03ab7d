"""Object maps and layouts, against the plainest way to say the same."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from csi_host_rbd.ceph.extents import Extent, Layout, clipped, merged
from csi_host_rbd.ceph.object_map import ObjectStates, changed, marks

NONE, WRITTEN, GOING, UNCHANGED = range(4)
_states = st.lists(st.integers(0, 3), min_size=1, max_size=40)


def _packed(states: list[int]) -> bytes:
    """Pack states as librbd does: four in a byte, the first one highest."""
    padded = states + [NONE] * (-len(states) % 4)
    quadruples = [padded[start : start + 4] for start in range(0, len(padded), 4)]
    return bytes(first << 6 | second << 4 | third << 2 | fourth for first, second, third, fourth in quadruples)


def _of(states: list[int]) -> ObjectStates:
    return ObjectStates.of(_packed(states), len(states))


@given(_states)
def test_an_object_exists_in_every_state_but_none_and_was_written_in_two(states: list[int]) -> None:
    found = _of(states)
    assert list(marks(found.existing, len(states))) == [state != NONE for state in states]
    assert list(marks(found.written, len(states))) == [state in {WRITTEN, GOING} for state in states]


@given(st.integers(1, 30).flatmap(lambda count: st.lists(_of_length(count), min_size=2, max_size=5)))
def test_an_object_changed_when_one_of_the_later_maps_says_so_or_it_came_or_went(maps: list[list[int]]) -> None:
    count = len(maps[0])
    found = changed(_of(maps[0]), [_of(states) for states in maps[1:]])
    wanted = [
        any(
            states[number] in {WRITTEN, GOING} or (states[number] == NONE) != (before[number] == NONE)
            for before, states in itertools.pairwise(maps)
        )
        for number in range(count)
    ]
    assert list(marks(found, count)) == wanted


def _of_length(count: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, 3), min_size=count, max_size=count)


def test_what_a_map_has_behind_its_last_object_is_not_looked_at() -> None:
    assert marks(ObjectStates.of(b"\xff", 1).existing, 1) == b"\x01"
    assert marks(ObjectStates.of(b"", 0).existing, 3) == b"\0\0\0"


_layouts = st.builds(
    lambda unit, units, count: Layout(object_bytes=unit * units, stripe_unit_bytes=unit, stripe_count=count),
    st.sampled_from([1, 2, 8]),
    st.integers(1, 4),
    st.integers(1, 5),
)


@given(_layouts, st.data())
def test_the_extents_of_objects_are_the_bytes_that_they_hold(layout: Layout, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 6 * layout.period_bytes))
    start = data.draw(st.integers(0, size - 1))
    objects = layout.objects_of(start, size)
    chosen = data.draw(st.lists(st.booleans(), min_size=len(objects), max_size=len(objects)))
    found = list(clipped(layout.extents_of(objects.start, bytes(chosen)), start, size))
    marked = {number for number, is_chosen in zip(objects, chosen, strict=True) if is_chosen}
    wanted = [at for at in range(start, size) if _object_of(layout, at) in marked]
    assert [at for extent in found for at in range(extent.offset, extent.end)] == wanted
    # As few as can be.
    assert list(merged(found)) == found
    assert objects.start % 4 == 0


def _object_of(layout: Layout, offset: int) -> int:
    """Return the object that holds a byte, as Ceph's documents on striping have it."""
    unit, count = layout.stripe_unit_bytes, layout.stripe_count
    block = offset // unit
    row = block // count
    return row // (layout.object_bytes // unit) * count + block % count


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 10))))
def test_merged_extents_hold_the_same_bytes_and_do_not_touch(ranges: list[tuple[int, int]]) -> None:
    found = list(merged(sorted(Extent(*one) for one in ranges)))
    assert {at for one in found for at in range(one.offset, one.end)} == {
        at for offset, length in ranges for at in range(offset, offset + length)
    }
    assert all(before.end < after.offset for before, after in itertools.pairwise(found))
