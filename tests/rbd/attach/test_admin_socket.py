"""What a client of librados waits for, asked at its admin socket while the real cluster is silent."""

import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import rados

from csi_host_rbd.attach.admin_socket import oldest_request_seconds
from csi_host_rbd.devcluster import DevCluster


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="csi-asok-") as directory:
        yield Path(directory) / "client.asok"


@pytest.mark.ceph
def test_the_age_of_what_the_osd_does_not_answer_is_told_while_it_hangs(ceph: DevCluster, path: Path) -> None:
    settings = {"admin_socket": str(path)}
    with rados.Rados(conffile=str(ceph.ceph_conf), conf=settings) as handle, handle.open_ioctx(ceph.pool) as ioctx:
        ioctx.write("asked", b"before")
        assert oldest_request_seconds(path) == 0.0
        ceph.stop_osd()
        try:
            completion = ioctx.aio_write("asked", b"meanwhile")
            time.sleep(1)
            assert 0.9 < oldest_request_seconds(path) < 30
        finally:
            ceph.resume_osd()
        completion.wait_for_complete()
        assert oldest_request_seconds(path) == 0.0
        ioctx.remove_object("asked")


def test_nobody_at_the_socket_is_an_error(path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        oldest_request_seconds(path)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        pytest.param(b"", OSError, id="nothing"),
        pytest.param(b"\0\0\0\x08{}", OSError, id="less"),
        pytest.param(b"\0\0\0\x02{]", ValueError, id="no-json"),
        pytest.param(b"\xff\xff\xff\xff", ValueError, id="endless"),
        pytest.param(b"\0\0\0\x02{}", ValueError, id="no-ops"),
        pytest.param(b"\0\0\0\x02[]", ValueError, id="a-list"),
        pytest.param(b'\0\0\0\x0c{"ops":[{}]}', ValueError, id="no-age"),
    ],
)
def test_an_answer_that_is_none_is_an_error(path: Path, answer: bytes, error: type[Exception]) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))
        listener.listen()
        threading.Thread(target=_answer, args=(listener, answer), daemon=True).start()
        with pytest.raises(error):
            oldest_request_seconds(path)


def _answer(listener: socket.socket, answer: bytes) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(1000)
        connection.sendall(answer)
