"""A server of Vault's HTTP API, as far as the driver asks it, that can be sealed, slow, forgetful or cut off.

Both engines behave as the real server's: versions, check-and-set, soft deletion, destruction. The tests that say so
run against a real server as well, where one is named (tests/rbd/encryption/conftest.py).
"""

import json
import secrets as randomness
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from typing import Any
from urllib.parse import unquote

_Reply = tuple[int, dict[str, Any]]
_DENIED: _Reply = (403, {"errors": ["permission denied"]})
_NOTHING: _Reply = (404, {"errors": []})


@dataclass(kw_only=True)
class Secret:
    """What lies at one path: each version's content, None for a deleted one."""

    versions: list[dict[str, Any] | None] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request as it came in."""

    method: str
    path: str
    namespace: str
    token: str
    body: Mapping[str, Any]


@dataclass(kw_only=True)
class VaultServer:
    """The server's state, which a test may look at and change while it serves.

    ``engines`` are mounts by name with their version. ``service_accounts`` are the tokens that may log in as ``role``.
    ``is_sealed`` makes it answer 503; ``loses_answers`` does what was asked and breaks off; ``holds`` keeps every
    request waiting until it is set; ``redirects_to`` is the active server's address. ``denied`` are paths,
    ``finds_wrong`` is said of whatever is written.
    """

    address: str = ""
    root_token: str = field(default_factory=lambda: "hvs." + randomness.token_hex(12))
    engines: dict[str, int] = field(default_factory=lambda: {"secret": 2})
    service_accounts: set[str] = field(default_factory=set)
    role: str = "csi-kubernetes"
    lease_seconds: int = 3600
    secrets: dict[tuple[str, str], Secret] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    asked: list[Asked] = field(default_factory=list)
    denied: set[str] = field(default_factory=set)
    finds_wrong: str = ""
    is_sealed: bool = False
    loses_answers: bool = False
    holds: Event | None = None
    redirects_to: str = ""
    guard: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        self.tokens.add(self.root_token)

    def revoke_logins(self) -> None:
        """Have every token but the root's end now."""
        with self.guard:
            self.tokens.intersection_update({self.root_token})

    def answer(self, asked: Asked) -> _Reply:
        """Do what is asked."""
        with self.guard:
            self.asked.append(asked)
            if self.is_sealed:
                return 503, {"errors": ["Vault is sealed"]}
            if asked.path.startswith("auth/"):
                return self._log_in(asked)
            if asked.token not in self.tokens or asked.path in self.denied:
                return _DENIED
            return self._on_engine(asked)

    def _log_in(self, asked: Asked) -> _Reply:
        if not asked.path.endswith("/login"):
            return _NOTHING
        if asked.body.get("role") != self.role:
            return 400, {"errors": ["invalid role name " + str(asked.body.get("role"))]}
        if asked.body.get("jwt") not in self.service_accounts:
            # A careless server, or what stands before it, may repeat what it was sent.
            return 403, {"errors": ["permission denied for " + str(asked.body.get("jwt"))]}
        token = "hvs." + randomness.token_hex(12)
        self.tokens.add(token)
        return 200, {"auth": {"client_token": token, "lease_duration": self.lease_seconds}}

    def _on_engine(self, asked: Asked) -> _Reply:
        if asked.path.startswith("sys/internal/ui/mounts/"):
            version = self.engines.get(asked.path.removeprefix("sys/internal/ui/mounts/"))
            options = None if version == 1 else {"version": str(version)}
            return (200, {"data": {"type": "kv", "options": options}}) if version else _DENIED
        if asked.path.startswith("sys/mounts/"):
            self.engines[asked.path.removeprefix("sys/mounts/")] = int(asked.body["options"]["version"])
            return 204, {}
        mount = next((name for name in self.engines if asked.path.startswith(name + "/")), "")
        if not mount:
            return 404, {"errors": ["no handler for route"]}
        rest = asked.path.removeprefix(mount + "/")
        if self.engines[mount] == 1:
            return self._unversioned(asked, (asked.namespace, f"{mount}/{rest}"))
        folder, _, name = rest.partition("/")
        return self._versioned(asked, folder, (asked.namespace, f"{mount}/{name}"))

    def _unversioned(self, asked: Asked, key: tuple[str, str]) -> _Reply:
        if asked.method == "DELETE":
            self.secrets.pop(key, None)
            return 204, {}
        if asked.method == "GET":
            found = self.secrets.get(key)
            return (200, {"data": found.versions[-1]}) if found else _NOTHING
        self.secrets[key] = Secret(versions=[dict(asked.body)])
        return 204, {}

    def _versioned(self, asked: Asked, folder: str, key: tuple[str, str]) -> _Reply:
        found = self.secrets.get(key)
        if asked.method == "DELETE" and folder == "metadata":
            self.secrets.pop(key, None)
            return 204, {}
        if asked.method == "DELETE":
            if found:
                found.versions[-1] = None
            return 204, {}
        if asked.method == "GET":
            if not found:
                return _NOTHING
            metadata = {"version": len(found.versions), "destroyed": False}
            content = found.versions[-1]
            return (404 if content is None else 200), {"data": {"data": content, "metadata": metadata}}
        return self._write_version(asked, key)

    def _write_version(self, asked: Asked, key: tuple[str, str]) -> _Reply:
        found = self.secrets.get(key, Secret())
        if self.finds_wrong:
            return 400, {"errors": [self.finds_wrong]}
        condition = asked.body.get("options", {}).get("cas")
        if condition is not None and condition != len(found.versions):
            return 400, {"errors": ["check-and-set parameter did not match the current version"]}
        found.versions.append(dict(asked.body["data"]))
        self.secrets[key] = found
        return 200, {"data": {"version": len(found.versions)}}


@contextmanager
def serving_vault(certificate: str = "", **state: Any) -> Iterator[VaultServer]:
    """Serve on a port of its own; ``certificate`` is a PEM file with a key for serving TLS."""
    server = VaultServer(**state)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(length) or "{}")
            if server.holds is not None:
                server.holds.wait()
            if server.redirects_to:
                self._reply(307, {}, location=server.redirects_to + self.path)
                return
            status, document = server.answer(
                Asked(
                    method=self.command,
                    path=unquote(self.path).removeprefix("/v1/"),
                    namespace=self.headers.get("X-Vault-Namespace", ""),
                    token=self.headers.get("X-Vault-Token", ""),
                    body=body,
                )
            )
            if server.loses_answers:
                self.close_connection = True
                return
            self._reply(status, document)

        do_GET = do_POST = do_DELETE = _serve  # noqa: N815 (names that http.server calls)

        def _reply(self, status: int, document: dict[str, Any], *, location: str = "") -> None:
            content = json.dumps(document).encode() if document else b""
            self.send_response(status)
            if location:
                self.send_header("Location", location)
            self.send_header("Content-Length", str(len(content)))
            # Who gave up does not hear it.
            with suppress(BrokenPipeError):
                self.end_headers()
                self.wfile.write(content)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        if certificate:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(certificate)
            listener.socket = context.wrap_socket(listener.socket, server_side=True)
        scheme, name = ("https", "localhost") if certificate else ("http", "127.0.0.1")
        server.address = f"{scheme}://{name}:{listener.server_address[1]}"
        thread = Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            if server.holds is not None:
                server.holds.set()
            listener.shutdown()
            thread.join()
