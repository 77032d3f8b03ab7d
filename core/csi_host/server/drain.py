"""Serving until a signal comes, and an end that is always reached."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from csi_host import logs
from csi_host.server.in_flight import stack_of
from csi_host.server.server import CsiServer
from csi_host.server.slow_calls import log_unfinished

EXIT_CLEAN = 0
EXIT_UNFINISHED = 3
# What the driver's own clean-up may take on top of the grace period.
_CLOSE_SECONDS = 5.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_LOGGER = logging.getLogger("csi_host.server")


def serve_until_signal(
    server: CsiServer,
    grace_seconds: float,
    on_stopped: Callable[[], None],
    begin: Callable[[], None] = lambda: None,
) -> int:
    """Wait for SIGTERM or SIGINT, drain the server, and return the process's exit code.

    ``begin`` is called once signals are heard: what starts the server belongs there, so that a signal in that moment
    is not lost. ``on_stopped`` is called when every call has ended, and the code is then 0. When some did not end
    within ``grace_seconds``, or ``on_stopped`` hangs, they are logged with their stacks and the process ends here with
    3, as their threads would keep the interpreter. A second signal ends the process at once with 128 + its number. To
    be called from the main thread.
    """
    with _signals() as next_signal:
        begin()
        next_signal()
        threading.Thread(target=_exit_at, args=(next_signal,), name="second-signal", daemon=True).start()
        _LOGGER.info(f"stopping: waiting up to {grace_seconds:g} s for {len(server.in_flight.calls())} calls")
        unfinished = server.drain(grace_seconds)
        for call in unfinished:
            log_unfinished(_LOGGER, "unfinished at exit", call)
        # What a call still works with is not closed under it.
        is_closed = not unfinished and _closes_within(on_stopped, _CLOSE_SECONDS)
        logs.flush()
        if not is_closed:
            os._exit(EXIT_UNFINISHED)
    return EXIT_CLEAN


@contextmanager
def _signals() -> Iterator[Callable[[], int | None]]:
    # Python runs its signal handlers between two bytecodes of the main thread: a signal that comes just before that
    # thread blocks would wait until it wakes. The wakeup descriptor is written to at once, whichever thread is hit.
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    previous_descriptor = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    previous = {number: signal.signal(number, _ignore) for number in _SIGNALS}

    def next_signal() -> int | None:
        while number := os.read(reading, 1):
            if number[0] in _SIGNALS:
                return number[0]
        os.close(reading)
        return None

    try:
        yield next_signal
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(previous_descriptor)
        os.close(writing)


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """Stand in for a handler: without one the signal would not reach the wakeup descriptor."""


def _exit_at(next_signal: Callable[[], int | None]) -> None:
    number = next_signal()
    if number is not None:
        os._exit(128 + number)


def _closes_within(close: Callable[[], None], seconds: float) -> bool:
    def attempt() -> None:
        try:
            close()
        except Exception:
            _LOGGER.exception("the driver's clean-up failed")

    thread = threading.Thread(target=attempt, name="close", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        _LOGGER.warning(
            f"the driver's clean-up did not end within {seconds:g} s", extra={"stack": stack_of(thread.ident or 0)}
        )
    return not thread.is_alive()
