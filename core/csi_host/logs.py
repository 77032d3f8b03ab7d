"""The log: one JSON object a line, and never a secret in it."""

import json
import logging
import re
import shlex
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TextIO

from google.protobuf.message import Message

from csi_host.process import REDACTED
from csi_host.request import current_request
from csi_host.services.secret_fields import stripped

LEVELS: Mapping[str, int] = {
    "error": logging.ERROR,
    "warning": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
}
# What a record has whatever is logged; everything else was given as ``extra``.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
# Text that repr, JSON and shell quoting all leave as it is: most keys and names.
_PLAIN = re.compile(r"[\w@%+=:,./-]+", re.ASCII)
# Short values are often names (a secret has the user beside its key), and parts of other names: replacing "csi" within
# "csi-vol-1" would shred the message that names the image. They go as whole words only.
_SHORT = 8


class Scrubber:
    """Takes secret values out of texts; ``values`` is asked once, and only if there is a text to scrub."""

    def __init__(self, values: Callable[[], Sequence[str]]) -> None:
        self._values = values
        self._pattern: re.Pattern[str] | None = None

    def __call__(self, text: str) -> str:
        """Return ``text`` with every secret value replaced, quoted and escaped forms as well."""
        if self._pattern is None:
            forms = {form for value in self._values() for form in _forms(value)}
            # Longer ones first, as one may contain another.
            alternatives = [_alternative(form) for form in sorted(forms, key=len, reverse=True)]
            self._pattern = re.compile("|".join(alternatives) or r"(?!)")
        return self._pattern.sub(REDACTED, text)


_scrubber: ContextVar[Scrubber | None] = ContextVar("csi_host_scrubber", default=None)


@contextmanager
def withholding(scrubber: Scrubber) -> Iterator[None]:
    """Scrub whatever this thread logs within the ``with``."""
    token = _scrubber.set(scrubber)
    try:
        yield
    finally:
        _scrubber.reset(token)


class JsonFormatter(logging.Formatter):
    """Time, level, logger, message, the call being served, and what was given as ``extra``."""

    _encode = json.JSONEncoder(ensure_ascii=False, default=repr).encode

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        request = current_request()
        if request is not None:
            line |= {"request_id": request.request_id, "rpc": request.rpc}
        line |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info and record.exc_info[1] is not None:
            line["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))
        scrubber = _scrubber.get()
        return self._encode(line if scrubber is None else _scrubbed(line, scrubber))


def configure(level: str, stream: TextIO) -> None:
    """Send everything logged from ``level`` (error, warning, info, debug) up to ``stream``; raises ValueError."""
    if level not in LEVELS:
        raise ValueError(f"log level {level!r}: expected one of {', '.join(LEVELS)}")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=LEVELS[level], handlers=[handler], force=True)


def flush() -> None:
    """Write out what the handlers still hold."""
    for handler in logging.getLogger().handlers:
        handler.flush()


def strip_secrets(message: Message) -> str:
    """Return a CSI message as JSON without its secrets."""
    return json.dumps(stripped(message), ensure_ascii=False)


def _forms(value: str) -> Iterator[str]:
    # Kubernetes secrets often end with a newline that the program's own message does not have.
    for text in {value, value.strip()} - {""}:
        yield text
        if _PLAIN.fullmatch(text):
            continue
        yield repr(text)[1:-1]
        yield json.dumps(text)[1:-1]
        yield json.dumps(text, ensure_ascii=False)[1:-1]
        yield shlex.quote(text).removeprefix("'").removesuffix("'")


def _alternative(form: str) -> str:
    escaped = re.escape(form)
    return escaped if len(form) >= _SHORT else rf"(?<![\w./-]){escaped}(?![\w./-])"


def _scrubbed(value: object, scrubber: Scrubber) -> object:
    if isinstance(value, str):
        return scrubber(value)
    if isinstance(value, Mapping):
        return {key: _scrubbed(item, scrubber) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_scrubbed(item, scrubber) for item in value]
    if isinstance(value, bool | int | float) or value is None:
        return value
    return scrubber(repr(value))
