from pathlib import Path

import pytest

from csi_host.server.endpoint import Endpoint, EndpointError


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("unix:///csi/csi.sock", "/csi/csi.sock"),
        ("unix://tmp/csi.sock", "/tmp/csi.sock"),
        ("UNIX:///csi/csi.sock", "/csi/csi.sock"),
        ("unix:////csi/csi.sock", "/csi/csi.sock"),
        ("unix:/csi/csi.sock", "/csi/csi.sock"),
        ("/csi/csi.sock", "/csi/csi.sock"),
        ("/csi/with:colon.sock", "/csi/with:colon.sock"),
    ],
)
def test_unix_endpoints_name_a_path_from_the_root(text: str, path: str) -> None:
    endpoint = Endpoint.parse(text)
    assert (endpoint.kind, endpoint.path) == ("unix", Path(path))
    assert endpoint.grpc_target == f"unix:{path}"
    assert str(endpoint) == f"unix://{path}"


def test_a_unix_path_after_a_bare_colon_is_relative_to_where_we_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Endpoint.parse("unix:csi.sock").path == tmp_path / "csi.sock"


@pytest.mark.parametrize(
    ("text", "host", "port", "target"),
    [
        ("tcp://127.0.0.1:10000", "127.0.0.1", 10000, "127.0.0.1:10000"),
        ("TCP://localhost:0", "localhost", 0, "localhost:0"),
        ("tcp://[::1]:10000", "::1", 10000, "[::1]:10000"),
    ],
)
def test_tcp_endpoints_name_a_host_and_a_port(text: str, host: str, port: int, target: str) -> None:
    endpoint = Endpoint.parse(text)
    assert (endpoint.kind, endpoint.host, endpoint.port) == ("tcp", host, port)
    assert endpoint.grpc_target == target
    assert str(endpoint) == f"tcp://{target}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "csi.sock",
        "unix:",
        "unix://",
        "unix:///",
        "unix:///csi/",
        "unix:///csi\0.sock",
        "http://host:1",
        "tcp:host:1",
        "tcp://host",
        "tcp://:1",
        "tcp://host:port",
        "tcp://host:65536",
        "tcp://host:-1",
        "tcp://host:²",
        "tcp://::1:1",
    ],
)
def test_anything_else_is_refused_showing_what_was_given(text: str) -> None:
    with pytest.raises(EndpointError, match=r"expected|no NUL") as caught:
        Endpoint.parse(text)
    assert repr(text) in str(caught.value)
