import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import urllib3

from csi_host.kms import Kms, KmsRequest
from csi_host_rbd.encryption.vault import VaultServers
from csi_host_rbd.testing.vault import VaultServer, serving_vault

# A real server, for whoever has one: CSI_HOST_TEST_VAULT_ADDR and CSI_HOST_TEST_VAULT_TOKEN, which may mount engines.
_REAL_ADDRESS, _REAL_TOKEN = "CSI_HOST_TEST_VAULT_ADDR", "CSI_HOST_TEST_VAULT_TOKEN"


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A key-value engine of a server, and the raw requests by which a test looks at it."""

    address: str
    token: str
    mount: str
    version: int
    servers: VaultServers = field(default_factory=VaultServers)

    def kms(self, secrets: Mapping[str, str] | None = None, **section: Any) -> Kms:
        members = {"vaultAddress": self.address, "vaultBackendPath": self.mount} | section
        given = {"vaultToken": self.token} if secrets is None else secrets
        return self.servers.create(KmsRequest(kms_id="vault-1", section=members, secrets=given))

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        response = urllib3.request(
            method, f"{self.address}/v1/{path}", headers={"X-Vault-Token": self.token}, json=body, retries=False
        )
        return response.status, json.loads(response.data) if response.data else None

    def path(self, name: str) -> str:
        return f"{self.mount}/data/{name}" if self.version == 2 else f"{self.mount}/{name}"


@pytest.fixture
def vault() -> Iterator[VaultServer]:
    with serving_vault() as server:
        yield server


@pytest.fixture(params=[1, 2], ids=["kv", "kv-v2"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """An engine of the test's own, of either version; on a real server where one is named."""
    version, mount = int(request.param), f"csi-{uuid.uuid4().hex[:8]}"
    address, token = os.environ.get(_REAL_ADDRESS, ""), os.environ.get(_REAL_TOKEN, "")
    if address:
        one = Engine(address=address, token=token, mount=mount, version=version)
        status, _ = one.ask("POST", f"sys/mounts/{mount}", {"type": "kv", "options": {"version": str(version)}})
        assert status == 204
        yield one
        one.ask("DELETE", f"sys/mounts/{mount}")
        return
    with serving_vault(engines={mount: version}) as server:
        yield Engine(address=server.address, token=server.root_token, mount=mount, version=version)


@pytest.fixture
def kms_of() -> Callable[..., Kms]:
    """Make the KMS of a section, always by the same host."""
    servers = VaultServers()

    def make(server: VaultServer, secrets: Mapping[str, str] | None = None, **section: Any) -> Kms:
        members = {"vaultAddress": server.address} | section
        return servers.create(KmsRequest(kms_id="vault-1", section=members, secrets=secrets or {}))

    return make
