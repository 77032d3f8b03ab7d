import logging
import threading

from csi_host.server.in_flight import Call, InFlightCalls


class SlowCallLog:
    """A thread that logs every ``interval_seconds`` which calls are older than that, and where each of them is."""

    def __init__(self, calls: InFlightCalls, interval_seconds: float, logger: logging.Logger) -> None:
        self._calls = calls
        self._interval_seconds = interval_seconds
        self._logger = logger
        self._stopped = threading.Event()

    def start(self) -> None:
        """Begin to watch, unless the interval is 0, which means off."""
        if self._interval_seconds > 0:
            threading.Thread(target=self._watch, name="slow-calls", daemon=True).start()

    def stop(self) -> None:
        """Watch no more."""
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(self._interval_seconds):
            for call in self._calls.calls():
                if call.request.age_seconds() >= self._interval_seconds:
                    log_unfinished(self._logger, "slow call", call)


def log_unfinished(logger: logging.Logger, what: str, call: Call) -> None:
    """Log one call that is still being served, with the stack of its thread."""
    request = call.request
    logger.warning(
        f"{what}: {request.rpc} has been running for {request.age_seconds():.1f} s",
        extra={
            "rpc": request.rpc,
            "request_id": request.request_id,
            "age_seconds": round(request.age_seconds(), 3),
            "past_deadline": call.is_past_deadline,
            "stack": call.stack(),
        },
    )
