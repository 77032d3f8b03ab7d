"""A connection to a Ceph cluster, and the pools that are seen through it."""

import json
import time
from collections.abc import Callable, Mapping
from threading import Lock
from typing import Any

from csi_host.request import seconds_for
from csi_host_rbd.ceph.bindings import rados
from csi_host_rbd.ceph.failures import (
    ObjectNotFound,
    PoolNotFound,
    error_of,
    translated,
)
from csi_host_rbd.ceph.helpers import FreeThreads, HelperThreads
from csi_host_rbd.ceph.writes import Writes

# A call that does not answer holds a thread; beyond these more calls fail at once.
_MAP_THREADS = 8
_MANAGER_THREADS = 4
_IMAGE_THREADS = 32
# A call of librbd is a handful of operations after each other, and may wait for another client's exclusive lock,
# which is taken from it after 30 s without a sign of life.
_OPERATIONS_PER_CALL = 3
_LOCK_SECONDS = 40.0
# Much longer than a client's tickets are good for, so that one which slept for hours has to authenticate anew.
_BLOCKLIST_SECONDS = 24 * 3600
_ENDING_SECONDS = 1.0
_ENDING_PAUSE_SECONDS = 0.005


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

    @property
    def fsid(self) -> str:
        """The cluster's own id; known since connecting, no operation."""
        return str(self._handle.get_fsid())

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
