"""Reading the members of a KMS section: each is known, has the right type, or is an error that names it."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from difflib import get_close_matches
from typing import Any

from csi_host.kms import KmsMisconfigured, KmsRequest
from csi_host.setting_values import parse_boolean


class Members:
    """The members of one section; no value of theirs is ever in a message."""

    def __init__(self, request: KmsRequest) -> None:
        self._kms_id = request.kms_id
        self._members: Mapping[str, Any] = request.section

    def check_names(self, served: Iterable[str], unserved: Mapping[str, str]) -> None:
        """Raise KmsMisconfigured for a member that has no effect here; ``unserved`` says by name what to do instead."""
        served = list(served)
        for name in self._members:
            if name in unserved:
                raise self.wrong(name, f"not served: {unserved[name]}")
            if name not in served:
                near = get_close_matches(name, served, n=1)
                raise self.wrong(name, "unknown" + (f"; did you mean {near[0]}?" if near else ""))

    def text(self, name: str, default: str = "") -> str:
        """Return a text, ``default`` when it is missing or empty."""
        value = self._members.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.wrong(name, "expected text")
        return value or default

    def required_text(self, name: str) -> str:
        """Return a text that must be there."""
        value = self.text(name)
        if not value:
            raise self.wrong(name, "required")
        return value

    def truth(self, name: str, *, default: bool) -> bool:
        """Return a truth, written as ceph-csi does ("true" in quotes) or as JSON does."""
        value = self._members.get(name)
        if value is None or value == "":
            return default
        if isinstance(value, bool):
            return value
        if isinstance(value, str):
            with suppress(ValueError):
                return parse_boolean(value)
        raise self.wrong(name, "expected true or false")

    def wrong(self, name: str, why: str) -> KmsMisconfigured:
        """Return the error that names the member."""
        return KmsMisconfigured(f"KMS {self._kms_id!r}: {name}: {why}")
