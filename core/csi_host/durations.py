"""Lengths of time as Go writes them, which is how every CSI sidecar's flags are written."""

import re

_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_NUMBER = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)"
_PART = re.compile(rf"({_NUMBER})(ns|us|µs|μs|ms|s|m|h)")
_WHOLE = re.compile(rf"\+?(?:{_PART.pattern})+")
_BARE = re.compile(rf"\+?{_NUMBER}")


def parse_duration(text: str) -> float:
    """Return the seconds in ``10s``, ``1m30s``, ``1.5h``, ``250ms`` or a bare number of seconds.

    Raises ValueError, which says what was expected; there are no negative durations here.
    """
    if _BARE.fullmatch(text):
        return float(text)
    if _WHOLE.fullmatch(text):
        return sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(text))
    raise ValueError(f"expected a duration such as 10s, 1m30s or 500ms, got {text!r}")
