import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from csi_host.server.endpoint import EndpointError
from csi_host.server.socket_guard import MAX_SOCKET_PATH_BYTES, SocketGuard


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="csi-") as directory:
        yield Path(directory) / "csi.sock"


def listening_at(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen()
    return listener


def bound_by(guard: SocketGuard) -> socket.socket:
    with guard.binding() as private_path:
        return listening_at(private_path)


def test_the_socket_appears_at_the_path_and_only_its_owner_may_use_it(path: Path) -> None:
    guard = SocketGuard(path)
    guard.claim()
    with bound_by(guard):
        assert stat.S_ISSOCK(path.stat().st_mode)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert not guard.private_path.exists()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        guard.release()


def test_the_umask_is_as_before_once_bound(path: Path) -> None:
    before = os.umask(0o022)
    try:
        guard = SocketGuard(path)
        guard.claim()
        with bound_by(guard):
            assert os.umask(0o022) == 0o022
        guard.release()
    finally:
        os.umask(before)


def test_a_released_path_has_nothing_left_at_it(path: Path) -> None:
    guard = SocketGuard(path)
    guard.claim()
    with bound_by(guard):
        guard.release()
    assert list(path.parent.iterdir()) == []


def test_a_stale_socket_is_replaced(path: Path) -> None:
    listening_at(path).close()
    stale = path.stat().st_ino
    guard = SocketGuard(path)
    guard.claim()
    with bound_by(guard):
        assert path.stat().st_ino != stale
        guard.release()


def test_a_stale_private_socket_of_a_crash_is_no_obstacle(path: Path) -> None:
    guard = SocketGuard(path)
    listening_at(guard.private_path).close()
    guard.claim()
    guard.private_path.unlink()  # as gRPC does before it binds
    with bound_by(guard):
        guard.release()
    assert list(path.parent.iterdir()) == []


def test_a_live_server_without_our_lock_is_not_robbed(path: Path) -> None:
    with listening_at(path):
        inode = path.stat().st_ino
        with pytest.raises(EndpointError, match="another server answers on it"):
            SocketGuard(path).claim()
        assert path.stat().st_ino == inode


def test_a_refused_claim_leaves_the_lock_free(path: Path) -> None:
    with listening_at(path), pytest.raises(EndpointError):
        SocketGuard(path).claim()
    path.unlink()
    guard = SocketGuard(path)
    guard.claim()
    guard.release()


def test_a_second_owner_is_refused_naming_the_first_process(path: Path) -> None:
    guard = SocketGuard(path)
    guard.claim()
    with pytest.raises(EndpointError, match=rf"another server owns it \(process {os.getpid()} holds the lock"):
        SocketGuard(path).claim()
    guard.release()
    second = SocketGuard(path)
    second.claim()
    second.release()


def test_the_lock_of_a_killed_process_is_free_although_its_files_stay(path: Path) -> None:
    program = (
        "import sys, socket, pathlib\n"
        "from csi_host.server.socket_guard import SocketGuard\n"
        f"guard = SocketGuard(pathlib.Path({str(path)!r}))\n"
        "guard.claim()\n"
        "listener = socket.socket(socket.AF_UNIX)\n"
        "with guard.binding() as private_path: listener.bind(str(private_path)); listener.listen()\n"
        "print('owned', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"owned\n"
        with pytest.raises(EndpointError, match=f"process {owner.pid} holds the lock"):
            SocketGuard(path).claim()
        owner.kill()
        owner.wait()
    assert {entry.name for entry in path.parent.iterdir()} == {"csi.sock", "csi.sock.lock"}
    guard = SocketGuard(path)
    guard.claim()
    guard.release()


def test_a_lock_file_that_was_removed_while_it_was_opened_locks_nothing(path: Path) -> None:
    first, second = SocketGuard(path), SocketGuard(path)
    first.claim()
    opened: list[int] = []
    open_lock = second._open_lock

    def open_then_have_it_removed() -> int:
        opened.append(open_lock())
        if len(opened) == 1:
            first.release()
        return opened[-1]

    second._open_lock = open_then_have_it_removed  # type: ignore[method-assign] # the race, arranged
    second.claim()
    assert len(opened) == 2
    with pytest.raises(EndpointError, match="owns it"):
        SocketGuard(path).claim()
    second.release()


def test_a_successors_socket_is_not_removed(path: Path) -> None:
    guard = SocketGuard(path)
    guard.claim()
    with bound_by(guard):
        path.unlink()
        with listening_at(path):
            guard.release()
            assert stat.S_ISSOCK(path.stat().st_mode)


@pytest.mark.parametrize("kind", ["file", "directory", "symlink"])
def test_what_is_not_a_socket_is_never_removed(path: Path, kind: str) -> None:
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("/nonexistent")
    with pytest.raises(EndpointError, match="not a socket"):
        SocketGuard(path).claim()
    assert path.is_symlink() or path.exists()


def test_a_missing_directory_is_named(path: Path) -> None:
    with pytest.raises(EndpointError, match=rf"the directory {path.parent}/missing does not exist"):
        SocketGuard(path.parent / "missing" / "csi.sock").claim()


def test_a_path_has_as_many_bytes_as_the_kernel_takes_and_no_more(path: Path) -> None:
    room = MAX_SOCKET_PATH_BYTES - len(str(path.parent)) - 1
    guard = SocketGuard(path.parent / ("s" * room))
    guard.claim()
    with bound_by(guard):
        guard.release()
    with pytest.raises(EndpointError, match="expected at most 107 bytes, it has 108"):
        SocketGuard(path.parent / ("s" * (room + 1))).claim()
