"""Touching a device or a mount from this process without waiting for it for ever.

A read of a device whose backend is silent sleeps in the kernel and cannot be ended. It is done on a thread of its own,
which is abandoned when the time is up: the handler answers, its locks come free, and the thread ends when the device
answers or goes. Only what reads may be done so, as an abandoned write would land at a time of its own choosing.
"""

import os
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from typing import TypeVar

from csi_host.errors import Unavailable
from csi_host.node.mounts import StrPath
from csi_host.request import seconds_for

_T = TypeVar("_T")


class DeviceSilent(Unavailable):
    """A device or mount does not answer: its backend is down or slow. Nothing was changed; ask again later."""


class _Look:
    """One look at a device, under way on a thread of its own."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.is_done = threading.Event()
        self.failure: BaseException | None = None


class Patience:
    """Looks at devices for a limited time, and never at one that still owes the answer to an earlier look."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._looks: dict[str, _Look] = {}

    def look(self, device: StrPath, action: Callable[[], _T], *, at_most: float) -> _T:
        """Return what ``action``, which only reads, returns or raises, within ``at_most`` seconds.

        Raises DeviceSilent, also at once when an earlier look at ``device`` has not come back, and DeadlineExceeded
        when the caller's deadline has passed already.
        """
        name = os.fspath(device)
        seconds = seconds_for(f"reading {name}", at_most=at_most)
        found: list[_T] = []
        look = self._begin(name, lambda: found.append(action()))
        if not look.is_done.wait(seconds):
            raise DeviceSilent(
                f"{name} has not answered for {seconds:.0f} s: what serves it is down or overloaded: "
                "look at its daemon and its cluster. Nothing is changed; ask again later"
            )
        if look.failure is not None:
            raise look.failure
        return found[0]

    def _begin(self, name: str, action: Callable[[], None]) -> _Look:
        with self._lock:
            if (earlier := self._looks.get(name)) is not None:
                age = time.monotonic() - earlier.started
                raise DeviceSilent(f"{name} has not answered for {age:.0f} s, since it was read last; ask again later")
            look = self._looks[name] = _Look()
        thread = threading.Thread(
            target=copy_context().run, args=(self._run, name, look, action), name=f"look {name}", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:
            self._forget(name)
            raise Unavailable(f"no thread can be started: {error}") from error
        return look

    def _run(self, name: str, look: _Look, action: Callable[[], None]) -> None:
        try:
            action()
        except BaseException as error:  # noqa: BLE001 - carried to the caller, which raises it
            look.failure = error
        finally:
            self._forget(name)
            look.is_done.set()

    def _forget(self, name: str) -> None:
        with self._lock:
            del self._looks[name]
