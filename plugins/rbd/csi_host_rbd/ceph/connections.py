"""Connections to Ceph clusters: one for each cluster and user, kept open and shared by all calls."""

import hashlib
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from csi_host.request import seconds_for
from csi_host_rbd.ceph.bindings import rados
from csi_host_rbd.ceph.cluster import Connection
from csi_host_rbd.ceph.failures import BackendTimeout, Blocklisted, translated_connect
from csi_host_rbd.ceph.memory import release_free_memory
from csi_host_rbd.ceph.writes import Writes
from csi_host_rbd.credentials import Credentials

_IDLE_SECONDS = 600.0
# Also how soon after a burst of calls what they used is given back to the system.
_SWEEP_SECONDS = 5.0
# With nowhere to write a log to, librados still collects the messages of levels up to 5, in memory and through a thread
# that is woken for each.
_SILENT_SUBSYSTEMS = (
    "debug_auth", "debug_monc", "debug_ms", "debug_objectcacher", "debug_objecter", "debug_rados", "debug_rbd",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """How long the cluster may take, in seconds: to be reached, and for one operation of a monitor or an OSD."""

    connect: float = 15.0
    operation: float = 30.0


@dataclass
class _Slot:
    """The connection of one cluster and user, and who uses it."""

    connecting: Lock = field(default_factory=Lock)
    connection: Connection | None = None
    users: int = 0
    last_used: float = 0.0

    def is_idle(self, *, since: float) -> bool:
        return self.users == 0 and self.last_used <= since and not (self.connection and self.connection.is_busy)

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()


class Connections:
    """Open connections by cluster and user.

    Each is made at its first use and closed when nobody used it for ``idle_seconds``. Keys go to librados in memory;
    ``ceph_conf`` is read when it exists, ``settings`` are librados options that win over it. ``writes`` hears of every
    durable step.
    """

    def __init__(
        self,
        *,
        timeouts: Timeouts,
        ceph_conf: Path | None = None,
        settings: Mapping[str, str] | None = None,
        idle_seconds: float = _IDLE_SECONDS,
        writes: Writes | None = None,
    ) -> None:
        self._timeouts = timeouts
        self._ceph_conf = ceph_conf
        self._settings = dict(settings or {})
        self._idle_seconds = idle_seconds
        self._writes = writes or Writes()
        self._guard = Lock()
        self._slots: dict[tuple[str, str, str], _Slot] = {}
        self._closing = threading.Event()
        self._sweeper: threading.Thread | None = None

    @property
    def count(self) -> int:
        """How many clusters and users there is a connection for."""
        with self._guard:
            return len(self._slots)

    @contextmanager
    def use(self, monitors: str, credentials: Credentials) -> Iterator[Connection]:
        """Yield a connection to the cluster at ``monitors`` (as librados' ``mon_host`` takes them)."""
        # The key itself stays out of this table.
        key = (monitors, credentials.user_id, hashlib.sha256(credentials.key.encode()).hexdigest())
        with self._guard:
            slot = self._slots.setdefault(key, _Slot())
            slot.users += 1
        try:
            yield self._connected(slot, monitors, credentials)
        except Blocklisted:
            # The cluster will never talk to this connection again: the next call gets a new one.
            self._drop(key, slot)
            raise
        finally:
            self._release(key, slot)

    def close(self) -> None:
        """Close all connections; call it when nobody uses one any more."""
        self._closing.set()
        with self._guard:
            slots, self._slots = list(self._slots.values()), {}
            # One that a call which nobody waits for still uses is closed by that call, when it ends.
            unused = [slot for slot in slots if slot.users == 0]
        for slot in unused:
            slot.close()

    def _connected(self, slot: _Slot, monitors: str, credentials: Credentials) -> Connection:
        # One caller connects, the others wait for it, no longer than connecting can take.
        seconds = seconds_for("connecting to the cluster", at_most=self._timeouts.connect)
        if not slot.connecting.acquire(timeout=seconds):
            raise BackendTimeout(f"connecting to {monitors}: another call has been at it for {seconds:g} s")
        try:
            if slot.connection is None:
                slot.connection = self._open(monitors, credentials)
                self._start_sweeper()
            return slot.connection
        finally:
            slot.connecting.release()

    def _open(self, monitors: str, credentials: Credentials) -> Connection:
        operation = _whole_seconds(self._timeouts.operation)
        return Connection(
            self._connect(monitors, credentials, {"rados_mon_op_timeout": operation, **self._settings}),
            # When a command outlives this timeout and the manager answers later, librados writes the answer to
            # memory that is gone (seen with 16.2.15: heap corruption). So the manager has a handle without it.
            open_manager=lambda: self._connect(
                monitors, credentials, {**self._settings, "rados_mon_op_timeout": "0", "admin_socket": ""}
            ),
            operation_seconds=self._timeouts.operation,
            writes=self._writes,
        )

    def _connect(self, monitors: str, credentials: Credentials, settings: Mapping[str, str]) -> Any:
        with translated_connect(credentials.user_id, monitors):
            handle = rados.Rados(rados_id=credentials.user_id)
            for name, value in {**self._own_settings(monitors), **settings}.items():
                handle.conf_set(name, value)
            # What was set before wins over the file. Only reading one, be it empty, makes the settings of the log take
            # effect before connecting writes to it: to standard error, and a key that it cannot decode as well.
            handle.conf_read_file(self._file_to_read())
            handle.conf_set("key", credentials.key)
            try:
                handle.connect()
            except rados.Error:
                handle.shutdown()
                raise
        return handle

    def _file_to_read(self) -> str:
        has_one = self._ceph_conf is not None and self._ceph_conf.is_file()
        return str(self._ceph_conf) if has_one else os.devnull

    def _own_settings(self, monitors: str) -> dict[str, str]:
        return {
            "mon_host": monitors,
            "keyring": "",
            "keyfile": "",
            "client_mount_timeout": _whole_seconds(self._timeouts.connect),
            "rados_osd_op_timeout": _whole_seconds(self._timeouts.operation),
            "admin_socket": "",
            # A snapshot may be removed while clones hang on it, as ceph-csi's layout wants; the default depends on the
            # age of the clients that the cluster lets in.
            "rbd_default_clone_format": "2",
            # librados writes to standard error, to files and to syslog on its own account otherwise.
            "log_to_stderr": "false",
            "err_to_stderr": "false",
            "log_file": "",
            "log_to_syslog": "false",
            "err_to_syslog": "false",
            **dict.fromkeys(_SILENT_SUBSYSTEMS, "0/0"),
        }

    def _drop(self, key: tuple[str, str, str], slot: _Slot) -> None:
        with self._guard:
            if self._slots.get(key) is slot:
                del self._slots[key]

    def _release(self, key: tuple[str, str, str], slot: _Slot) -> None:
        with self._guard:
            slot.users -= 1
            slot.last_used = time.monotonic()
            is_ours_to_close = slot.users == 0 and self._slots.get(key) is not slot
            if slot.users == 0 and slot.connection is None and not is_ours_to_close:
                del self._slots[key]
        if is_ours_to_close:
            slot.close()

    def _start_sweeper(self) -> None:
        with self._guard:
            if self._sweeper is None:
                self._sweeper = threading.Thread(target=self._sweep, name="csi-host-ceph-idle", daemon=True)
                self._sweeper.start()

    def _sweep(self) -> None:
        # Closing may take a while, and so is not done in a call.
        while not self._closing.wait(min(_SWEEP_SECONDS, self._idle_seconds)):
            for slot in self._take_idle():
                slot.close()
            release_free_memory()

    def _take_idle(self) -> list[_Slot]:
        oldest = time.monotonic() - self._idle_seconds
        with self._guard:
            idle = [key for key, slot in self._slots.items() if slot.is_idle(since=oldest)]
            return [self._slots.pop(key) for key in idle]


def _whole_seconds(seconds: float) -> str:
    # The options are whole seconds, and 0 means for ever.
    return str(max(1, round(seconds)))
