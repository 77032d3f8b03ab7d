"""What the texts of settings mean: each function returns a value, or raises ValueError saying what was expected."""

import re
from collections.abc import Mapping
from pathlib import Path

from csi_host.durations import parse_duration

LOG_LEVELS = ("error", "warning", "info", "debug")

# Go's boolean text, which ceph-csi's manifests are written in; "yes" and "on" are errors there as well.
_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})

# klog prints errors, warnings and information whatever its level; ceph-csi's debug lines begin at 4.
KLOG_DEBUG = 4
_MAX_DRIVER_NAME_LENGTH = 63  # CSI spec, GetPluginInfoResponse.name
_MAX_NODE_ID_BYTES = 256  # CSI spec, NodeGetInfoResponse.node_id
_MAX_WORKERS = 1024
_DNS_LABEL = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?"
_DNS_SUBDOMAIN = re.compile(rf"{_DNS_LABEL}(\.{_DNS_LABEL})*")


def parse_boolean(text: str) -> bool:
    """Return the truth of Go's boolean text; raises ValueError.

    A driver's option with this parser is a flag that needs no value.
    """
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ValueError(f"expected true or false (also 1, t, 0, f), got {text!r}")


def parse_driver_name(text: str) -> str:
    """Return ``text`` when it can be a CSI driver's name; raises ValueError.

    The rule is ceph-csi's: at most 63 characters, in lower case a DNS-1123 subdomain.
    """
    if len(text) > _MAX_DRIVER_NAME_LENGTH or not _DNS_SUBDOMAIN.fullmatch(text.lower()):
        raise ValueError(
            f"expected at most {_MAX_DRIVER_NAME_LENGTH} letters, digits, '-' and '.', "
            f"as in rbd.csi.ceph.com, got {text!r}"
        )
    return text


def parse_words(text: str) -> str:
    """Return ``text``, of which there must be some; raises ValueError."""
    if not text:
        raise ValueError("expected some text, got none")
    return text


def parse_node_id(text: str) -> str:
    """Return ``text`` when it can be a node's id in bytes; raises ValueError."""
    if len(text.encode()) > _MAX_NODE_ID_BYTES:
        raise ValueError(f"expected at most {_MAX_NODE_ID_BYTES} bytes, got {len(text.encode())}")
    return text


def parse_directory(text: str) -> Path:
    """Return an absolute path; raises ValueError."""
    if not text.startswith("/"):
        raise ValueError(f"expected an absolute path, got {text!r}")
    return Path(text)


def parse_list(text: str) -> str:
    """Return the words between the commas, joined by commas, the empty ones left out."""
    return ",".join(word for word in (word.strip() for word in text.split(",")) if word)


def parse_labels(text: str) -> Mapping[str, str]:
    """Return the labels of ``name=value`` between commas, without those that have no value; raises ValueError.

    An environment variable that Kubernetes makes of a label which is not there is empty.
    """
    labels = {}
    for word in filter(None, parse_list(text).split(",")):
        name, separator, value = word.partition("=")
        if not separator or not name:
            raise ValueError(f"expected name=value between commas, got {word!r}")
        if value:
            labels[name] = value
    return labels


def parse_workers(text: str) -> int:
    """Return a number of threads; raises ValueError."""
    if not text.isdecimal() or not 1 <= int(text) <= _MAX_WORKERS:
        raise ValueError(f"expected a number from 1 to {_MAX_WORKERS}, got {text!r}")
    return int(text)


def parse_log_level(text: str) -> str:
    """Return one of LOG_LEVELS; raises ValueError."""
    if text not in LOG_LEVELS:
        raise ValueError(f"expected one of {', '.join(LOG_LEVELS)}, got {text!r}")
    return text


def parse_klog_level(text: str) -> str:
    """Return the level of ours that a number of klog's stands for; raises ValueError."""
    try:
        level = int(text)
    except ValueError:
        raise ValueError(f"expected a number, got {text!r}") from None
    return "debug" if level >= KLOG_DEBUG else "info"


def parse_timeout(text: str) -> float:
    """Return a duration in seconds, more than 0; raises ValueError."""
    seconds = parse_duration(text)
    if seconds <= 0:
        raise ValueError(f"expected more than 0, got {text!r}")
    return seconds
