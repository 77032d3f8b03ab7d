import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from csi_host_rbd.attach.qmp import QmpClient, QmpClosed, QmpRefused, QmpTimeout

GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\r\n'


@contextmanager
def daemon(path: Path, talk: Callable[[socket.socket], None]) -> Iterator[None]:
    """A daemon on a real socket that talks to one client."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            talk(connection)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        thread.join(10)
        listener.close()
        assert not thread.is_alive()


def greet(connection: socket.socket) -> None:
    connection.sendall(GREETING)
    answer(connection, {"return": {}})


def answer(connection: socket.socket, message: dict[str, Any]) -> dict[str, Any]:
    command = receive(connection)
    connection.sendall(json.dumps({**message, "id": command["id"]}).encode() + b"\r\n")
    return command


def receive(connection: socket.socket) -> dict[str, Any]:
    data = b""
    while not data.endswith(b"\n"):
        data += connection.recv(1)
    received: dict[str, Any] = json.loads(data)
    return received


def until_hung_up(connection: socket.socket) -> None:
    while connection.recv(4096):
        pass


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "q"


def test_an_answer_that_comes_byte_by_byte_among_events_is_found(path: Path) -> None:
    commands: list[dict[str, Any]] = []

    def talk(connection: socket.socket) -> None:
        greet(connection)
        command = receive(connection)
        commands.append(command)
        answer_line = json.dumps({"return": {"size": 7}, "id": command["id"]}).encode()
        for byte in b'{"event": "BLOCK_EXPORT_DELETED", "data": {"id": "e"}}\r\n' + answer_line + b"\r\n":
            connection.sendall(bytes([byte]))

    with daemon(path, talk), QmpClient(path, timeout=10) as qmp:
        assert qmp.execute("query-size", {"node": "n"}) == {"size": 7}
    assert commands[0]["execute"] == "query-size"
    assert commands[0]["arguments"] == {"node": "n"}


def test_an_answer_to_who_was_connected_before_is_not_taken_for_the_greeting(path: Path) -> None:
    def talk(connection: socket.socket) -> None:
        connection.sendall(b'{"return": {}, "id": "another client\'s"}\n')
        greet(connection)
        answer(connection, {"return": "ours"})

    with daemon(path, talk), QmpClient(path, timeout=10) as qmp:
        assert qmp.execute("query") == "ours"


def test_no_two_clients_use_one_id_for_their_commands(path: Path, tmp_path: Path) -> None:
    ids = []

    def talk(connection: socket.socket) -> None:
        greet(connection)
        ids.append(answer(connection, {"return": {}})["id"])

    for place in (path, tmp_path / "r"):
        with daemon(place, talk), QmpClient(place, timeout=10) as qmp:
            qmp.execute("query")
    assert ids[0] != ids[1]


def test_two_answers_in_one_packet_are_told_apart(path: Path) -> None:
    def talk(connection: socket.socket) -> None:
        greet(connection)
        command = receive(connection)
        stale = {"return": "stale", "id": "another client's"}
        fresh = {"return": "fresh", "id": command["id"]}
        connection.sendall(json.dumps(stale).encode() + b"\n" + json.dumps(fresh).encode() + b"\n")

    with daemon(path, talk), QmpClient(path, timeout=10) as qmp:
        assert qmp.execute("query") == "fresh"


def test_a_refusal_has_the_daemons_words_and_no_argument(path: Path) -> None:
    def talk(connection: socket.socket) -> None:
        greet(connection)
        answer(connection, {"error": {"class": "GenericError", "desc": "no such image"}})

    with daemon(path, talk), QmpClient(path, timeout=10) as qmp, pytest.raises(QmpRefused) as caught:
        qmp.execute("blockdev-add", {"data": "c2VjcmV0"})
    assert str(caught.value) == "blockdev-add: no such image"


def test_a_daemon_that_does_not_answer_is_given_up_in_time(path: Path) -> None:
    def talk(connection: socket.socket) -> None:
        greet(connection)
        until_hung_up(connection)

    with daemon(path, talk), QmpClient(path, timeout=10) as qmp, pytest.raises(QmpTimeout, match="query"):
        qmp.execute("query", timeout=0.05)


def test_a_daemon_that_only_sends_events_is_given_up_in_time(path: Path) -> None:
    def talk(connection: socket.socket) -> None:
        greet(connection)
        receive(connection)
        try:
            while True:
                connection.sendall(b'{"event": "TICK"}\n')
        except (BrokenPipeError, ConnectionResetError):
            pass

    with daemon(path, talk), QmpClient(path, timeout=10) as qmp, pytest.raises(QmpTimeout):
        qmp.execute("query", timeout=0.1)


def test_a_daemon_that_takes_the_connection_and_says_nothing_is_given_up_in_time(path: Path) -> None:
    with daemon(path, until_hung_up), pytest.raises(QmpTimeout, match="greeting"), QmpClient(path, timeout=0.05):
        pass


def test_a_daemon_that_hangs_up_in_the_middle_of_an_answer_is_gone(path: Path) -> None:
    def talk(connection: socket.socket) -> None:
        greet(connection)
        receive(connection)
        connection.sendall(b'{"return": {')

    with daemon(path, talk), QmpClient(path, timeout=10) as qmp, pytest.raises(QmpClosed, match="quit"):
        qmp.execute("quit")


def test_something_that_is_no_qmp_is_not_believed(path: Path) -> None:
    with (
        daemon(path, lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")),
        pytest.raises(QmpClosed, match="QMP"),
        QmpClient(path, timeout=10),
    ):
        pass


def test_a_socket_without_a_daemon_is_gone(path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.close()
    with pytest.raises(QmpClosed, match="refused"), QmpClient(path, timeout=10):
        pass


def test_no_socket_is_gone(path: Path) -> None:
    with pytest.raises(QmpClosed, match="No such file"), QmpClient(path, timeout=10):
        pass
