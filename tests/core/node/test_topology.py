import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi_host.node.topology import TopologyError, parse_labels, segments

LABELS = {
    "beta.kubernetes.io/arch": "amd64",
    "failure-domain/region": "east",
    "failure-domain/zone": "east-1",
    "topology.kubernetes.io/zone": "east-2",
}


def test_the_wanted_labels_become_segments() -> None:
    assert segments("RBD.csi.example.com", "failure-domain/zone, failure-domain/region", LABELS) == {
        "topology.rbd.csi.example.com/zone": "east-1",
        "topology.rbd.csi.example.com/region": "east",
    }


@pytest.mark.parametrize("labels", ["", " , "])
def test_no_labels_wanted_is_no_topology(labels: str) -> None:
    assert segments("x" * 99, labels, {"a/b": "v"}) == {}


def test_only_the_first_slash_counts() -> None:
    assert segments("d", "a/b/c", {"a/b/c": "v"}) == {"topology.d/b/c": "v"}


@pytest.mark.parametrize(
    ("wanted", "named"),
    [
        ("failure-domain/zone,failure-domain/zone", "failure-domain/zone"),
        ("failure-domain/zone,topology.kubernetes.io/zone", "would both be the segment zone"),
        ("failure-domain/rack,failure-domain/row", "no label failure-domain/rack, failure-domain/row"),
        ("zone", "expected prefix/name, got zone"),
        ("/zone", "expected prefix/name"),
        ("failure-domain/", "expected prefix/name"),
        ("a/" + "b" * 64, "longer than 63"),
    ],
)
def test_labels_that_make_no_topology_are_refused_by_name(wanted: str, named: str) -> None:
    with pytest.raises(TopologyError, match=named):
        segments("rbd.csi.example.com", wanted, LABELS)


def test_the_key_of_a_topology_has_63_characters_at_most() -> None:
    longest = "d" * (63 - len("topology."))
    assert segments(longest, "a/b", {"a/b": "v"}) == {f"topology.{longest}/b": "v"}
    with pytest.raises(TopologyError, match="63"):
        segments(longest + "d", "a/b", {"a/b": "v"})


@pytest.mark.parametrize(
    "line", ["key", "=", '="value"', "key=value", 'key="', 'key="open', "key='v'", 'key="a" "b', 'key="\\q\\"']
)
def test_a_line_that_is_no_label_is_an_error_with_its_number(line: str) -> None:
    with pytest.raises(TopologyError, match="line 2"):
        parse_labels(f'a/b="fine"\n{line}\n')


def _go_quoted(text: str) -> str:
    r"""Quote as Go's %q does: ``\"``, ``\\``, short escapes, the rest of the control characters as \x.. or \u...."""
    short = {"\a": r"\a", "\b": r"\b", "\f": r"\f", "\n": r"\n", "\r": r"\r", "\t": r"\t", "\v": r"\v"}
    short |= {'"': r"\"", "\\": r"\\"}

    def quote(letter: str) -> str:
        code = ord(letter)
        if letter in short:
            return short[letter]
        if letter.isprintable():
            return letter
        return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

    return f'"{"".join(map(quote, text))}"'


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_value_comes_through_the_downward_apis_quoting(value: str) -> None:
    assert parse_labels(f"a/b={_go_quoted(value)}\n") == {"a/b": value}
