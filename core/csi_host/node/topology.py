"""The node's place in the cluster, from its labels."""

import ast
from collections.abc import Mapping

_NAME_AT_MOST = 63


class TopologyError(ValueError):
    """The domain labels and the node's labels do not make a topology; the message says which label and why."""


def segments(driver_name: str, domain_labels: str, labels: Mapping[str, str]) -> dict[str, str]:
    """Return the topology segments of this node, ``{"topology.<driver>/<name>": value}``.

    ``domain_labels`` is the comma-separated list of ``--domainlabels``, ``labels`` are the node's. A segment's name is
    what follows the first slash of its label. Raises TopologyError.
    """
    wanted = _wanted(domain_labels)
    if not wanted:
        return {}
    prefix = f"topology.{driver_name.lower()}"
    if len(prefix) > _NAME_AT_MOST:
        raise TopologyError(f"{prefix} has {len(prefix)} characters, a topology key may have {_NAME_AT_MOST}")
    if missing := [label for label in wanted.values() if label not in labels]:
        raise TopologyError(f"domain labels: this node has no label {', '.join(missing)}")
    return {f"{prefix}/{name}": labels[label] for name, label in wanted.items()}


def parse_labels(text: str) -> dict[str, str]:
    r"""Parse lines of ``key="value"``, as the Kubernetes downward API writes them to a file.

    The values have the escapes of a quoted Go string (``\"``, ``\\``, ``\n``, ``\u00e9``). Raises TopologyError.
    """
    labels = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            key, separator, value = line.partition("=")
            if not separator or not key.strip():
                raise TopologyError(f'labels, line {number}: expected key="value"')
            labels[key.strip()] = _unquote(value.strip(), number)
    return labels


def _wanted(domain_labels: str) -> dict[str, str]:
    """Return the labels by the names their segments will have."""
    wanted: dict[str, str] = {}
    for label in filter(None, (word.strip() for word in domain_labels.split(","))):
        prefix, separator, name = label.partition("/")
        if not separator or not prefix or not name:
            raise TopologyError(f"domain labels: expected prefix/name, got {label}")
        if len(name) > _NAME_AT_MOST:
            raise TopologyError(f"domain labels: the name of {label} is longer than {_NAME_AT_MOST} characters")
        if name in wanted:
            raise TopologyError(f"domain labels: {wanted[name]} and {label} would both be the segment {name}")
        wanted[name] = label
    return wanted


def _unquote(text: str, number: int) -> str:
    # The escapes of a Go string are a subset of those of a Python string.
    if len(text) >= 2 and text[0] == text[-1] == '"':  # noqa: PLR2004 - two quotes
        try:
            value = ast.literal_eval(text)
        except (SyntaxError, ValueError) as error:
            raise TopologyError(f"labels, line {number}: the value is not a quoted string") from error
        if isinstance(value, str):
            return value
    raise TopologyError(f"labels, line {number}: the value is not a quoted string")
