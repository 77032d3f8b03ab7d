"""What a running process is doing, written into its log when SIGUSR1 asks for it."""

import logging
import signal
import threading
from types import FrameType

from csi_host.driver import HostContext
from csi_host.server.in_flight import InFlightCalls, stack_of
from csi_host.server.slow_calls import log_unfinished

_LOGGER = logging.getLogger("csi_host.server")


def dump_on_signal(calls: InFlightCalls, context: HostContext) -> None:
    """Have SIGUSR1 write ``dump`` into the log; to be called from the main thread."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        # Not in the handler itself: it may have interrupted a thread in the middle of a log line.
        threading.Thread(target=dump, args=(calls, context), name="dump", daemon=True).start()

    signal.signal(signal.SIGUSR1, handle)


def dump(calls: InFlightCalls, context: HostContext) -> None:
    """Log the calls being served, who holds which lock, and where every thread is."""
    for call in calls.calls():
        log_unfinished(_LOGGER, "call in flight", call)
    _LOGGER.warning("locks held", extra={"locks": _locks(context)})
    # This thread last, whose line says that the dump is whole.
    for thread in sorted(threading.enumerate(), key=lambda thread: thread is threading.current_thread()):
        _LOGGER.warning(f"thread {thread.name}", extra={"stack": stack_of(thread.ident or 0)})


def _locks(context: HostContext) -> dict[str, dict[str, str]]:
    operations = context.operation_locks.holders()
    return {
        "volumes": {key: str(holder) for key, holder in context.volume_locks.holders().items()},
        "snapshots": {key: str(holder) for key, holder in context.snapshot_locks.holders().items()},
        "operations": {
            key: ", ".join(f"{operation}: {holder}" for operation, holder in held) for key, held in operations.items()
        },
    }
