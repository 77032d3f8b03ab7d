"""Connections to Ceph clusters: one for each cluster and user, kept open and shared by all calls."""

import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from csi_host.request import seconds_for
from csi_host_rbd.ceph.bindings import rados
from csi_host_rbd.ceph.failures import (
    BackendTimeout,
    Blocklisted,
    ObjectNotFound,
    PoolNotFound,
    error_of,
    translated,
    translated_connect,
)
from csi_host_rbd.ceph.helpers import FreeThreads, HelperThreads
from csi_host_rbd.ceph.memory import release_free_memory
from csi_host_rbd.ceph.writes import Writes
from csi_host_rbd.credentials import Credentials

_IDLE_SECONDS = 600.0
_SWEEP_SECONDS = 15.0
# A call that does not answer holds a thread; beyond these more calls fail at once.
_MAP_THREADS = 8
_MANAGER_THREADS = 4
_IMAGE_THREADS = 32
# A call of librbd is a handful of operations after each other, and may wait for another client's exclusive lock,
# which is taken from it after 30 s without a sign of life.
_OPERATIONS_PER_CALL = 3
# With nowhere to write a log to, librados still collects the messages of levels up to 5, in memory and through a thread
# that is woken for each.
_SILENT_SUBSYSTEMS = (
    "debug_auth", "debug_monc", "debug_ms", "debug_objectcacher", "debug_objecter", "debug_rados", "debug_rbd",
)  # fmt: skip
_LOCK_SECONDS = 40.0
# Much longer than a client's tickets are good for, so that one which slept for hours has to authenticate anew.
_BLOCKLIST_SECONDS = 24 * 3600
_ENDING_SECONDS = 1.0
_ENDING_PAUSE_SECONDS = 0.005


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """How long the cluster may take, in seconds: to be reached, and for one operation of a monitor or an OSD."""

    connect: float = 15.0
    operation: float = 30.0


class Pool:
    """A pool, seen through one RADOS namespace ("" is the default one).

    ``client_id`` is what the cluster calls this connection. ``ioctx``, ``image_threads`` and ``call_seconds`` (how long
    one call of librbd may take) are for this package alone, as ``has_sibling`` is (whether the cluster has a pool of
    another name) and ``blocklist`` (which shuts the client at an address out). ``writes`` hears of every durable step.
    """

    def __init__(
        self,
        *,
        ioctx: Any,
        name: str,
        pool_id: int,
        namespace: str,
        client_id: int,
        image_threads: HelperThreads,
        call_seconds: float,
        has_sibling: Callable[[str], bool],
        writes: Writes,
        blocklist: Callable[[str], None],
    ) -> None:
        self.ioctx = ioctx
        self.client_id = client_id
        self.name = name
        self.pool_id = pool_id
        self.namespace = namespace
        self.image_threads = image_threads
        self.call_seconds = call_seconds
        self.has_sibling = has_sibling
        self.writes = writes
        self.blocklist = blocklist

    def spec(self, image: str) -> str:
        """Return the name of an image of this pool as ``rbd`` writes it: ``pool[/namespace]/image``."""
        return "/".join(part for part in (self.name, self.namespace, image) if part)


class Connection:
    """An open connection; safe for many threads. ``open_manager`` makes the handle for the manager's commands."""

    def __init__(
        self, handle: Any, *, open_manager: Callable[[], Any], operation_seconds: float, writes: Writes
    ) -> None:
        self._handle = handle
        self.writes = writes
        self._open_manager = open_manager
        self._operation_seconds = operation_seconds
        self._call_seconds = _OPERATIONS_PER_CALL * operation_seconds + _LOCK_SECONDS
        self._guard = Lock()
        self._pools: dict[tuple[int, str], Pool] = {}
        self._manager_handle: Any = None
        free = FreeThreads()
        self._map_threads = HelperThreads(purpose="OSD map", limit=_MAP_THREADS, free=free)
        self._manager_threads = HelperThreads(purpose="manager", limit=_MANAGER_THREADS, free=free)
        self._image_threads = HelperThreads(purpose="image library", limit=_IMAGE_THREADS, free=free)

    @property
    def is_busy(self) -> bool:
        """Whether a call that nobody waits for any more still uses it."""
        return any(threads.running > 0 for threads in (self._map_threads, self._manager_threads, self._image_threads))

    def pool(self, name: str, namespace: str = "") -> Pool:
        """Return the pool of that name; raises PoolNotFound."""
        return self._pool(name, self.pool_id(name), namespace)

    def pool_with_id(self, pool_id: int, namespace: str = "") -> Pool:
        """Return the pool of that id; raises PoolNotFound."""
        return self._pool(self.pool_name(pool_id), pool_id, namespace)

    def pool_id(self, name: str) -> int:
        """Return a pool's id from the OSD map; a pool that is not in it is looked for in a fresh one."""
        return int(self._look_up(lambda: self._handle.pool_lookup(name), f"pool {name!r}"))

    def pool_name(self, pool_id: int) -> str:
        """Return a pool's name; raises PoolNotFound."""
        return str(self._look_up(lambda: self._handle.pool_reverse_lookup(pool_id), f"pool with id {pool_id}"))

    def pool_ids_for(self, application: str) -> list[int]:
        """Return the ids, in order, of the pools that are enabled for an application, or for none. No operation."""
        return sorted(pool_id for name in self._pool_names() if (pool_id := self._id_for(name, application)))

    def _pool_names(self) -> list[str]:
        def ask() -> list[str]:
            # A connection that has had nothing to do for a while knows nothing of the pools that came meanwhile.
            self._handle.wait_for_latest_osdmap()
            return list(self._handle.list_pools())

        with translated("listing the pools"):
            return self._map_threads.call("listing the pools", ask, timeout=self._operation_seconds)

    def _id_for(self, name: str, application: str) -> int:
        try:
            pool = self.pool(name)
            with translated(f"reading the applications of pool {name}"):
                applications = pool.ioctx.application_list()
        except (PoolNotFound, ObjectNotFound):
            # Deleted a moment ago.
            return 0
        return pool.pool_id if application in applications or not applications else 0

    def _look_up(self, ask: Callable[[], Any], what: str) -> Any:
        step = f"looking up {what}"
        try:
            with translated(step):
                # librados waits for the fresh map without a timeout.
                found = self._map_threads.call(step, ask, timeout=self._operation_seconds)
        except OverflowError:
            found = None
        if found is None:
            raise PoolNotFound(f"{what} does not exist in the cluster")
        return found

    def _pool(self, name: str, pool_id: int, namespace: str) -> Pool:
        # Keyed by id: a pool that was deleted and made anew under the same name is another pool.
        with self._guard:
            pool = self._pools.get((pool_id, namespace))
            if pool is None or pool.name != name:
                with translated(f"opening pool {name}"):
                    ioctx = self._handle.open_ioctx2(pool_id)
                    ioctx.set_namespace(namespace)
                    client_id = int(self._handle.get_instance_id())
                pool = Pool(
                    ioctx=ioctx,
                    name=name,
                    pool_id=pool_id,
                    namespace=namespace,
                    client_id=client_id,
                    image_threads=self._image_threads,
                    call_seconds=self._call_seconds,
                    has_sibling=self._has_pool,
                    writes=self.writes,
                    blocklist=self._blocklist,
                )
                self._pools[pool_id, namespace] = pool
            return pool

    def _has_pool(self, name: str) -> bool:
        try:
            self.pool_id(name)
        except PoolNotFound:
            return False
        return True

    def monitor_command(self, command: Mapping[str, str]) -> str:
        """Send a command that reads to the monitors and return what they answer; raises BackendTimeout."""
        step = f"monitor command {command['prefix']!r}"
        text = json.dumps(command)
        seconds = seconds_for(step, at_most=self._operation_seconds)
        with translated(step):
            code, output, message = self._map_threads.call(
                step, lambda: self._handle.mon_command(text, b""), timeout=seconds
            )
        if code != 0:
            raise error_of(rados.OSError(str(message), errno=code), f"{step}: {message}")
        return bytes(output).decode(errors="replace")

    def _blocklist(self, address: str) -> None:
        """Have the cluster refuse the client at ``address`` (``IP:port/nonce``); the OSDs do by our next operation."""
        step = f"blocklisting the client at {address}"

        def blocklist() -> None:
            self._handle.blocklist_add(address, _BLOCKLIST_SECONDS)
            # Our operations then carry the map that says so, and an OSD takes them up only once it has that map.
            self._handle.wait_for_latest_osdmap()

        with translated(step):
            self._map_threads.call(step, blocklist, timeout=self._operation_seconds)

    def manager_command(self, command: Mapping[str, str], *, timeout: float) -> str:
        """Send a command to the manager and return what it answers.

        Raises BackendTimeout after ``timeout`` seconds: the bindings ignore theirs, and the call hangs for as long as
        there is no active manager.
        """
        step = f"manager command {command['prefix']!r}"
        seconds = seconds_for(step, at_most=timeout)
        text = json.dumps(command)
        # The first command makes the handle, within the same time.
        code, output, message = self._manager_threads.call(
            step, lambda: self._manager().mgr_command(text, b""), timeout=seconds
        )
        if code != 0:
            raise error_of(rados.OSError(str(message), errno=code), f"{step}: {message}")
        return bytes(output).decode(errors="replace")

    def _manager(self) -> Any:
        with self._guard:
            handle = self._manager_handle
        if handle is not None:
            return handle
        made = self._open_manager()
        with self._guard:
            if self._manager_handle is None:
                self._manager_handle, made = made, None
            handle = self._manager_handle
        if made is not None:
            made.shutdown()
        return handle

    def close(self) -> None:
        """Close it, unless a call still hangs in it: pulling the handle from under that would crash the process.

        So does leaving it open till the process ends, hence the moment that a helper's thread needs to end is waited.
        """
        deadline = time.monotonic() + _ENDING_SECONDS
        while self.is_busy:
            if time.monotonic() > deadline:
                return
            time.sleep(_ENDING_PAUSE_SECONDS)
        with self._guard:
            pools, self._pools = self._pools, {}
            manager, self._manager_handle = self._manager_handle, None
        for pool in pools.values():
            pool.ioctx.close()
        self._handle.shutdown()
        if manager is not None:
            manager.shutdown()


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
