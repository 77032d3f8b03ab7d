import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from csi_host_rbd.ceph import omap
from csi_host_rbd.ceph.cluster import Connection
from csi_host_rbd.ceph.connections import Connections, Timeouts
from csi_host_rbd.ceph.failures import (
    ArgumentRefused,
    AuthenticationRefused,
    BackendTimeout,
    BackendUnavailable,
    Blocklisted,
    CephRefused,
    PermissionDenied,
    PoolNotFound,
)
from csi_host_rbd.credentials import Credentials
from csi_host_rbd.devcluster import DevCluster
from csi_host_rbd.testing.pools import PoolView

pytestmark = pytest.mark.ceph

NOBODY_LISTENS = "v2:127.0.0.1:1"
TASK_LIST = {"prefix": "rbd task list", "format": "json"}


@contextmanager
def _stopped_monitor(ceph: DevCluster) -> Iterator[None]:
    (monitor,) = [one for one in ceph.daemons() if one.program == "ceph-mon"]
    os.kill(monitor.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(monitor.pid, signal.SIGCONT)


def test_two_callers_at_once_share_one_connection(
    make_connections: Callable[..., Connections], mon_host: str, credentials: Credentials
) -> None:
    connections, start, found = make_connections(), threading.Barrier(6), []

    def use() -> None:
        start.wait()
        with connections.use(mon_host, credentials) as connection:
            found.append(connection)

    threads = [threading.Thread(target=use) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert len(set(found)) == 1
    assert connections.count == 1


def test_a_failed_connection_is_not_kept_and_the_next_call_connects(
    make_connections: Callable[..., Connections], ceph: DevCluster, mon_host: str, credentials: Credentials
) -> None:
    connections = make_connections(timeouts=Timeouts(connect=1.0, operation=1.0))
    with (
        _stopped_monitor(ceph),
        pytest.raises(BackendUnavailable, match=r"connecting to .* as client\.csi"),
        connections.use(mon_host, credentials),
    ):
        pass
    assert connections.count == 0
    with connections.use(mon_host, credentials) as connection:
        assert connection.pool_id(ceph.pool) > 0


def test_monitors_that_do_not_answer_are_given_up_in_time(
    make_connections: Callable[..., Connections], credentials: Credentials
) -> None:
    connections = make_connections(timeouts=Timeouts(connect=1.0, operation=1.0))
    with (
        pytest.raises(BackendUnavailable, match="did not answer in time"),
        connections.use(NOBODY_LISTENS, credentials),
    ):
        pass


def test_a_refused_user_is_named_and_the_key_is_not(
    make_connections: Callable[..., Connections], mon_host: str, credentials: Credentials
) -> None:
    stranger = Credentials(user_id="stranger", key=credentials.key)
    with (
        pytest.raises(AuthenticationRefused, match=r"client\.stranger") as caught,
        make_connections().use(mon_host, stranger),
    ):
        pass
    assert credentials.key not in str(caught.value)


def test_librados_writes_nothing_to_standard_error_not_even_a_key_it_cannot_decode(
    make_connections: Callable[..., Connections], mon_host: str, capfd: pytest.CaptureFixture[str]
) -> None:
    connections = make_connections()
    # Ceph 20 does not even try to decode it.
    refused = pytest.raises((BackendUnavailable, AuthenticationRefused))
    with refused, connections.use(mon_host, Credentials(user_id="csi", key="QUJDREVG")):
        pass
    connections.close()
    assert "QUJDREVG" not in "".join(capfd.readouterr())


def test_the_configuration_file_is_read_and_cannot_change_what_the_driver_sets(
    make_connections: Callable[..., Connections], mon_host: str, credentials: Credentials, tmp_path: Path
) -> None:
    conf, log = tmp_path / "ceph.conf", tmp_path / "client.log"
    conf.write_text(
        f"[global]\nmon host = {NOBODY_LISTENS}\nlog file = {log}\nrados osd op timeout = 77\n"
        "rbd default order = 23\nadmin socket = /nowhere/socket\nkey = AAAA\n"
    )
    with make_connections(ceph_conf=conf).use(mon_host, credentials) as connection:
        get = connection._handle.conf_get
        assert get("rbd_default_order") == "23"
        assert get("rados_osd_op_timeout") == "2"
        assert get("admin_socket") == ""
    assert not log.exists()


def test_a_connection_that_nobody_uses_is_closed(
    make_connections: Callable[..., Connections], mon_host: str, credentials: Credentials
) -> None:
    connections = make_connections(idle_seconds=0.2)
    with connections.use(mon_host, credentials) as connection:
        threading.Event().wait(0.6)
        assert connections.count == 1
        connection.pool_id("rbd")
    for _ in range(200):
        if connections.count == 0:
            break
        threading.Event().wait(0.05)
    assert connections.count == 0
    with connections.use(mon_host, credentials) as another:
        assert another is not connection


def test_a_blocklisted_client_gets_a_new_connection(
    make_connections: Callable[..., Connections],
    ceph: DevCluster,
    pool: PoolView,
    mon_host: str,
    credentials: Credentials,
) -> None:
    connections = make_connections()
    with connections.use(mon_host, credentials) as connection:
        address = connection._handle.get_addrs().split("/")
        client = f"{address[0].rpartition(',')[2].rpartition(':')[0].removeprefix('v1:')}:0/{address[-1].rstrip(']')}"
        ceph.ceph("osd", "blocklist", "add", client.replace("v2:", ""))
        # The map with it is known once a fresh one was waited for.
        connection._handle.wait_for_latest_osdmap()
    with pytest.raises(Blocklisted), connections.use(mon_host, credentials) as connection:
        omap.create_object(connection.pool(pool.name, pool.namespace), "one", {"a": "1"})
    with connections.use(mon_host, credentials) as connection:
        omap.create_object(connection.pool(pool.name, pool.namespace), "one", {"a": "1"})


def test_a_pool_is_found_by_name_and_by_id_as_soon_as_it_is_made(ceph: DevCluster, connection: Connection) -> None:
    with pytest.raises(PoolNotFound, match="fresh"):
        connection.pool("fresh")
    ceph.ceph("osd", "pool", "create", "fresh", "1")
    try:
        found = connection.pool("fresh")
        assert connection.pool_with_id(found.pool_id).name == "fresh"
    finally:
        ceph.delete_pool("fresh")


def test_a_pool_made_anew_under_its_old_name_is_another_pool(ceph: DevCluster, connection: Connection) -> None:
    ceph.ceph("osd", "pool", "create", "twice", "1")
    first = connection.pool("twice")
    ceph.delete_pool("twice")
    ceph.ceph("osd", "pool", "create", "twice", "1")
    try:
        # An old map still knows the first one, until an operation on it brings a new map.
        connection._handle.wait_for_latest_osdmap()
        with pytest.raises(PoolNotFound):
            connection.pool_with_id(first.pool_id)
        assert connection.pool("twice").pool_id != first.pool_id
    finally:
        ceph.delete_pool("twice")


@pytest.mark.parametrize("pool_id", [-1, 999_999, 2**63 - 1, 2**64])
def test_an_id_that_no_pool_has_is_not_found(connection: Connection, pool_id: int) -> None:
    with pytest.raises(PoolNotFound):
        connection.pool_with_id(pool_id)


def test_a_hung_monitor_ends_the_search_for_a_pool_in_time_and_does_not_hide_known_ones(
    ceph: DevCluster, connection: Connection
) -> None:
    # A fresh connection has no OSD map until its first lookup has waited for one.
    assert connection.pool(ceph.pool).name == ceph.pool
    with _stopped_monitor(ceph):
        with pytest.raises(BackendTimeout):
            connection.pool("nowhere")
        assert connection.pool(ceph.pool).name == ceph.pool


def test_manager_commands_answer_or_say_why_not(connection: Connection) -> None:
    assert connection.manager_command(TASK_LIST, timeout=10).startswith("[")
    with pytest.raises(ArgumentRefused, match="rbd tusk"):
        connection.manager_command({"prefix": "rbd tusk"}, timeout=10)
    with pytest.raises(PermissionDenied):
        connection.manager_command({"prefix": "osd df"}, timeout=10)


def test_a_hung_manager_costs_a_bounded_number_of_threads_and_its_late_answers_do_no_harm(
    ceph: DevCluster, connection: Connection
) -> None:
    connection.manager_command(TASK_LIST, timeout=10)
    ceph.stop_manager()
    try:
        for _ in range(4):
            with pytest.raises(BackendTimeout):
                # Longer together than rados_mon_op_timeout, after which librados would forget them.
                connection.manager_command(TASK_LIST, timeout=0.8)
        with pytest.raises(BackendUnavailable, match="4 calls of the manager hang"):
            connection.manager_command(TASK_LIST, timeout=0.8)
        assert connection.is_busy
    finally:
        ceph.resume_manager()
    for _ in range(200):
        if not connection.is_busy:
            break
        threading.Event().wait(0.05)
    assert connection.manager_command(TASK_LIST, timeout=10).startswith("[")


def test_nothing_holds_the_interpreter_while_ceph_does_not_answer(
    make_connections: Callable[..., Connections], ceph: DevCluster, connection: Connection, credentials: Credentials
) -> None:
    connection.manager_command(TASK_LIST, timeout=10)
    waiting = make_connections(timeouts=Timeouts(connect=1.0, operation=1.0))
    pauses, done = [], threading.Event()

    def watch() -> None:
        last = time.monotonic()
        while not done.wait(0.01):
            now = time.monotonic()
            pauses.append(now - last)
            last = now

    watcher = threading.Thread(target=watch)
    watcher.start()
    ceph.stop_manager()
    try:
        with pytest.raises(BackendUnavailable), waiting.use(NOBODY_LISTENS, credentials):
            pass
        with pytest.raises(BackendTimeout):
            connection.manager_command(TASK_LIST, timeout=1.0)
    finally:
        ceph.resume_manager()
        done.set()
        watcher.join()
    assert max(pauses) < 0.5


def test_an_unusable_address_of_a_monitor_is_an_error_and_not_a_crash(
    make_connections: Callable[..., Connections], credentials: Credentials
) -> None:
    with pytest.raises((BackendUnavailable, CephRefused)), make_connections().use("not an address!", credentials):
        pass
